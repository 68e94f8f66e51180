"""The port to vLLM's model runner: nothing outside this folder touches one.

``port`` is the interface; ``v1`` implements it for vLLM's V1 runner, ``v1_pipeline`` and
``v1_single`` are where that runner calls a pipeline's stage or the proposer on one device.
"""
