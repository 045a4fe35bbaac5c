"""A stand-in for CUDA graphs, for tests without a GPU."""


class Recorded:
    """Graphs that note what they are asked for, and repeat a step by calling it.

    As with a real graph, every replay overwrites the output of the one before.
    """

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def warm_up(self, step, inputs):
        self.calls.append("warm up")
        return step(*inputs)

    def capture(self, step, inputs):
        self.calls.append("capture")
        if self.error is not None:
            raise self.error
        outputs = []

        def replay():
            self.calls.append("replay")
            outputs.append(step(*inputs))
            return outputs[0].copy_(outputs.pop()) if len(outputs) > 1 else outputs[0]

        return replay
