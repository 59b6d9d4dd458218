"""Training stages: one file, one config, one ``run_x`` each. A new one also needs a ``StageSpec`` in the registry."""
