"""The library behind the training scripts: layers, schedules, data sets, runs, command line."""
