"""drivers: engines that the gateway starts itself, and the life of the adapters on them.

``records`` what an engine is configured with and says of itself. ``protocol`` the contract of every driver.
``registry`` from a config to its driver. ``llama_cpp``, ``transformers``, ``vllm``, ``sglang``, ``openai`` one each.
``adapters`` load, probe, route, drain, unload. ``probe`` requests with an expectation. The rest serves these:
``processes`` and ``guard`` child processes, ``http_server`` and ``http_client``, and the modules ending in ``_server``
and ``_engine``, which run in processes of their own. To add an engine: a config in ``records``, a driver file, a line
in ``registry``, its row in ``design/075-drivers.md``.
"""
