"""serving: the gateway through which candidates meet real traffic.

``gateway`` is one worker process: HTTP, upstreams, lanes. ``control`` is the process above the workers: snapshots,
rollback, the admin surface. ``access`` holds keys, budgets and certificates; ``shadow`` judges pairs of answers. Other
rooms: the log is ``traffic``, staged rollout ``rollouts``, choosing a model ``routing``, engines ``engines.drivers``.
"""
