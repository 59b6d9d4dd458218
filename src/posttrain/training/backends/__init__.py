"""Training backends: the engines that stages run on. TRL is the one on this machine."""
