"""Say in a sentence what it means that a check failed."""

# By the names of the checks in `checks` and `diagnostics`.
FAILED = {
    "clean_hardly_above_guessing": "The network hardly does better than guessing, so it has "
    "nothing to lose.",
    "fgsm_stronger_than_pgd": "The gradient at the image misleads PGD, or PGD's alpha or steps are "
    "too small.",
    "fgsm_above_clean": "The network recognises FGSM's pattern (label leaking), so its FGSM "
    "accuracy means nothing.",
    "fgsm_far_above_pgd": "Single-step training collapsed: the network withstands one step and "
    "nothing else.",
    "black_box_finds_more": "The gradients are hidden, but the mistakes are not.",
    "transfer_finds_more": "Images made against another model fool this one where its own gradient "
    "does not.",
    "stands_at_eps_1": "The attack does not work: at eps 1 any image may become any other.",
    "gradients_zero_or_not_finite": "The attack has nothing to follow: a layer rounds, or the loss "
    "is saturated.",
    "more_steps_raise_accuracy": "The attack moves in wrong directions.",
    "more_steps_find_more": "All attacks together were too weak: more steps find more.",
    "more_restarts_find_more": "All attacks together were too weak: more restarts find more.",
    "outputs_are_probabilities": "Attacks apply a softmax to a softmax, which flattens their "
    "gradient.",
    "outputs_are_random": "Every evaluation is a random draw, so the attack and the judge see "
    "different networks.",
    "judged_images_not_held_out": "Too many judged images are training images too, so the numbers "
    "describe what the model has seen.",
    "eps_in_wrong_units": "An eps was meant in other units than pixels in [0, 1].",
    "transfer_far_above_robust": "Robust accuracy is less than half of transfer accuracy. Expect "
    "the former from an attacker, never the latter.",
}
