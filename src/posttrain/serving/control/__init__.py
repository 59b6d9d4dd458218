"""The process above the workers: snapshots, rollouts, rollback, engines, the admin surface."""
