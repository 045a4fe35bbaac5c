"""One thin command a stage: read params, call the library, write the outputs named on the command line."""
