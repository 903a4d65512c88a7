"""The command line of a script: train, evaluate, predict, export, publish, excitation."""
