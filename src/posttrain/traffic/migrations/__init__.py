"""The schema of the index, as numbered SQL files (read by ``posttrain.artifacts.migrations``)."""
