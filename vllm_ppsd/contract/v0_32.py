"""vLLM 0.32: the hooks, and everything that PPSD relies on without changing it."""

from __future__ import annotations

from vllm_ppsd.contract.entries import Table, entries

VERSION = "0.32.0"
"""The vLLM version that the digests are of."""

FILES = "46d577ae8c0d"
"""Digest of that version's files: where it fits, nothing else need be looked at."""

_CHANGES = "vllm_ppsd.hooks.changes"

HOOKS: Table = {
    ("hook", f"{_CHANGES}.speculative_config", "vllm.engine.arg_utils:EngineArgs"): {
        "create_speculative_config": (
            "f64805340e5d",
            "vLLM has no registry for speculative methods; this makes `ppsd` one.",
        ),
    },
    ("hook", f"{_CHANGES}.speculative_model_flag", "vllm.engine.arg_utils:EngineArgs"): {
        "add_cli_args": ("a4378d5d3c33", "Adds the command line flag `--speculative-model`."),
    },
    ("hook", f"{_CHANGES}.concurrent_batches", "vllm.config.vllm:VllmConfig"): {
        "max_concurrent_batches": (
            "02317a4f8152",
            "As many steps in flight as drafts may be, plus the one that is known.",
        ),
    },
    ("hook", f"{_CHANGES}.no_draft_rpc", "vllm.v1.engine.core:EngineCore"): {
        "post_step": (
            "7be3a30902cf",
            "PPSD's drafts stay on stage 0; asking for them would drain the pipeline.",
        ),
    },
    ("hook", f"{_CHANGES}.sampling_parameters", "vllm.sampling_params:SamplingParams"): {
        "_validate_spec_decode": (
            "2283724c4c43",
            "vLLM's sampler retires every token, so min_p and logit_bias work too.",
        ),
    },
    ("hook", f"{_CHANGES}.cpu_model_runner", "vllm.v1.worker.cpu_worker:CPUWorker", "cpu"): {
        "init_device": (
            "6ee534a42cb3",
            "CPUWorker names its model runner class; this lets a subclass choose.",
        ),
    },
    ("hook", f"{_CHANGES}.expand_kernel", "vllm.utils.cpu_triton_utils:", "cpu"): {
        "_expand_kernel_impl": (
            "b0d7df291932",
            "On CPU, vLLM loses the temperature of drafted tokens; sampling needs it.",
        ),
    },
    ("hook", f"{_CHANGES}.queue_room", "vllm.v1.executor.multiproc_executor:MultiprocExecutor"): {
        "_init_executor": (
            "7d434c1fe3f9",
            "vLLM's queue to the workers holds five steps; long pipelines have more in flight.",
        ),
    },
    (
        "hook",
        f"{_CHANGES}.send_states",
        "vllm.distributed.parallel_state:GroupCoordinator",
        "cpu",
    ): {
        "isend_tensor_dict": (
            "0e734faeb964",
            "Between nodes a hand-over is four gloo messages in turn; this makes it one.",
        ),
    },
    (
        "hook",
        f"{_CHANGES}.receive_states",
        "vllm.distributed.parallel_state:GroupCoordinator",
        "cpu",
    ): {
        "irecv_tensor_dict": ("8a38e665c981", "The receiving end of `send-states`."),
    },
    ("hook", f"{_CHANGES}.clean_shutdown", "vllm.v1.engine.utils:CoreEngineProcManager"): {
        "shutdown": (
            "8cc77bc13ac0",
            "vLLM kills the engine with its SIGTERM; this lets it stop its workers first.",
        ),
    },
}

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_ASYNC_SCHEDULER = "vllm.v1.core.sched.async_scheduler:AsyncScheduler"
_PPSD_SCHEDULER = "vllm_ppsd.engine.scheduler.PPSDScheduler"

ENGINE: Table = {
    ("override", _PPSD_SCHEDULER, _ASYNC_SCHEDULER): {
        "__init__": ("dfdc4ab3827e", "Its config is one without speculation."),
        "_update_request_with_output": ("5940a181b660", "A token is judged after it is appended."),
    },
    ("override", _PPSD_SCHEDULER, _SCHEDULER): {
        "__init__": ("b6205d4d574f", "Its config is one without speculation."),
        "add_request": ("d44c6de45d62", "A new request gets a seed and draft metrics."),
        "has_requests": ("54420575880d", "False while the stages are full."),
        "schedule": (
            "b858cfaada39",
            "Requests that do not enter the tick are held back before it.",
        ),
        "update_from_output": ("3c9751a0424f", "The drafts are taken from the output before it."),
        "_update_request_with_output": ("201045cada17", "A token is judged after it is appended."),
        "make_stats": ("9665035dcd41", "It is given the statistics of drafts."),
    },
    ("call", "vllm_ppsd.engine.scheduler", _SCHEDULER): {
        "get_request_counts": ("865230b6ad6c", "Running and waiting requests."),
    },
    ("meaning", "vllm_ppsd.engine.scheduler", _SCHEDULER): {
        "_preempt_request": ("979be013f1f2", "A flush sets the fields that preemption sets."),
        "_update_after_schedule": ("b740cc318599", "Counts what is computed and in flight."),
        "_make_cached_request_data": ("72fe77c2cc55", "Sends no token where none is known."),
    },
    ("meaning", "vllm_ppsd.engine.scheduler", _ASYNC_SCHEDULER): {
        "_update_after_schedule": ("43a8c1ed4cdc", "Counts a placeholder per position sent ahead."),
    },
    ("meaning", "vllm_ppsd.engine.scheduler", "vllm.v1.engine.core:EngineCore"): {
        "step_with_batch_queue": (
            "3bae00736698",
            "Waits for a result if nothing is to be scheduled.",
        ),
    },
    ("field", "vllm_ppsd.engine", "vllm.v1.request:Request"): {
        "num_computed_tokens": ("7f5c4a6810ae", "A flush rewinds it."),
        "num_output_placeholders": ("7c6aaea06318", "Positions sent whose token is unknown."),
        "num_in_flight_tokens": ("da5a25a3db23", "What a flush makes stale."),
        "num_stale_output_tokens": ("48383303011a", "A flush sets it to what is in flight."),
        "drop_stale_output": ("052366f1defa", "Stale results are drained, not dropped."),
        "next_decode_eligible_step": ("8bc6f2b14429", "Holds a request back from a tick."),
        "is_prefill_chunk": ("ff63536dbbee", "Tells prompts from decoding requests."),
        "max_tokens": ("c90fffbeee7c", "Where a request ends."),
        "num_prompt_tokens": ("3bebe78d8c1c", "Where a request ends."),
        "request_id": ("e377ca531918", "Names a request."),
        "sampling_params": ("4fbd6a8bc4ef", "Holds the seed."),
        "spec_decode_metrics": ("dd4112607ce1", "Drafts are counted in it."),
        "status": ("a0a347e81b54", "Only running requests are flushed."),
        "use_structured_output": ("747f616405d2", "Such requests draft nothing."),
    },
    ("field", "vllm_ppsd.engine.scheduler", _SCHEDULER): {
        "requests": ("0ccc0dd36903", "Which requests are there."),
        "running": ("26bfc5297aea", "Which requests may enter a tick."),
        "log_stats": ("eaf0dff338fd", "Whether drafts are counted."),
        "spec_decode_metrics_level": ("d8befb3e4d79", "How much is noted of a request's drafts."),
    },
    ("call", "vllm_ppsd.engine.scheduler", "vllm.v1."): {
        "metrics.stats:RequestSpecDecodeMetrics.new": (
            "95c973d0543c",
            "Counts a request's drafts.",
        ),
        "metrics.stats:RequestSpecDecodeMetrics.observe": (
            "0b32a7a8ebc0",
            "Counts a request's drafts.",
        ),
        "spec_decode.metrics:SpecDecodingStats.new": (
            "945c8d005e4e",
            "Counts the drafts of a step.",
        ),
        "spec_decode.metrics:SpecDecodingStats.observe_draft": (
            "ecce741e0f99",
            "Counts a step's drafts.",
        ),
    },
    # PPSD's own outputs are copies of vLLM's, field by field.
    ("field", "vllm_ppsd", "vllm.v1.core.sched.output:SchedulerOutput"): {
        "scheduled_new_reqs": ("c07e7945900f", "The lanes of a tick."),
        "scheduled_cached_reqs": ("951a531139c7", "The lanes of a tick."),
        "num_scheduled_tokens": ("ca68b9facedf", "The lengths of lanes."),
        "total_num_scheduled_tokens": ("1e2830719cb5", "Whether a tick holds decoding lanes only."),
        "scheduled_spec_decode_tokens": (
            "af1d685f69ff",
            "On one device, the drafts being verified.",
        ),
        "finished_req_ids": ("b4a77d09eb4d", "What is remembered of these is forgotten."),
    },
    ("field", "vllm_ppsd.worker", "vllm.v1.core.sched.output:CachedRequestData"): {
        "req_ids": ("aa42f5993e66", "The lanes of a tick."),
        "new_token_ids": (
            "f42557765b59",
            "Empty where the token is not known; stage 0 fills it in.",
        ),
        "num_computed_tokens": ("84fc919e9fc2", "The positions of lanes."),
    },
    ("field", "vllm_ppsd", "vllm.v1.core.sched.output:NewRequestData"): {
        "req_id": ("a5abcbb681c0", "The lanes of a tick."),
        "num_computed_tokens": ("5071a08e7489", "The positions of lanes."),
    },
    ("field", "vllm_ppsd", "vllm.v1.outputs:ModelRunnerOutput"): {
        "req_ids": ("aa42f5993e66", "Which request each row is of."),
        "req_id_to_index": ("b9c880f0834b", "Which request each row is of."),
        "sampled_token_ids": ("34c8eb611983", "Empty for a stale lane."),
    },
}

_WORKER = "vllm.v1.worker.gpu_worker:Worker"
_CPU_WORKER = "vllm.v1.worker.cpu_worker:CPUWorker"
_WORKER_BASE = "vllm.v1.worker.worker_base:WorkerBase"
_PPSD_WORKER = "vllm_ppsd.worker.worker.PPSDWorkerMixin"
_SINGLE_WORKER = "vllm_ppsd.single.worker.SingleWorkerMixin"

WORKER: Table = {
    ("override", _PPSD_WORKER, _WORKER): {
        "__init__": ("3260142275ac", "The speculative config is replaced before it."),
        "execute_model": (
            "4bfe1e071ab1",
            "Waits for sends when the layers run, and drafts after it.",
        ),
    },
    ("override", _PPSD_WORKER, _WORKER_BASE): {
        "__init__": ("caf0de3cc6d6", "The speculative config is replaced before it."),
    },
    ("override", _PPSD_WORKER, _CPU_WORKER, "cpu"): {
        "__init__": ("8799820cdcdc", "The speculative config is replaced before it."),
        "init_device": ("6ee534a42cb3", "The model runner is given PPSD's config after it."),
    },
    ("override", _PPSD_WORKER, _WORKER, "cuda"): {
        "init_device": ("ff71452c33d7", "The model runner is given PPSD's config after it."),
    },
    ("override", "vllm_ppsd.worker.cuda.PPSDCUDAWorker", _WORKER, "cuda"): {
        "_make_model_runner": ("3d6601a9b9f7", "Makes PPSD's model runner."),
    },
    ("override", _SINGLE_WORKER, _WORKER): {
        "__init__": ("3260142275ac", "The speculative config is replaced before it."),
    },
    ("override", _SINGLE_WORKER, _WORKER_BASE): {
        "__init__": ("caf0de3cc6d6", "The speculative config is replaced before it."),
    },
    ("override", _SINGLE_WORKER, _CPU_WORKER, "cpu"): {
        "__init__": ("8799820cdcdc", "The speculative config is replaced before it."),
        "init_device": ("6ee534a42cb3", "The model runner is given PPSD's config after it."),
    },
    ("override", _SINGLE_WORKER, _WORKER, "cuda"): {
        "init_device": ("ff71452c33d7", "The model runner is given PPSD's config after it."),
    },
    ("override", "vllm_ppsd.single.cuda.SingleCUDAWorker", _WORKER, "cuda"): {
        "_make_model_runner": ("3d6601a9b9f7", "Makes PPSD's model runner."),
    },
    ("field", "vllm_ppsd.worker.worker", _WORKER): {
        "_pp_send_work": ("3599c8f9ca64", "Sends that vLLM would wait for too early."),
    },
    ("field", "vllm_ppsd.worker", _WORKER_BASE): {
        "parallel_config": ("5060f17c2af3", "How many nodes there are."),
        "model_runner": ("d90d7fb937ff", "It is given PPSD's config."),
    },
    ("field", "vllm_ppsd", _WORKER_BASE, "cuda"): {
        "vllm_config": ("37c343efde1a", "PPSD's model runner is made with it."),
    },
    ("field", "vllm_ppsd", _WORKER, "cuda"): {
        "device": ("4d891571031c", "PPSD's model runner is made with it."),
    },
    ("call", "vllm_ppsd.worker.scorer", "vllm.v1.worker.gpu_worker:AsyncIntermediateTensors"): {
        "wait_for_comm": ("04af11cdaeda", "A skipped tick takes in what was sent."),
    },
    ("field", "vllm_ppsd.worker", "vllm.distributed.parallel_state:GroupCoordinator"): {
        "is_first_rank": ("4adabfa1cd3d", "Whether this is stage 0."),
        "is_last_rank": ("4b2ba8cd2cd4", "Whether this is the last stage."),
        "rank_in_group": ("25066e0e5401", "The number of the stage."),
        "world_size": ("156fea85f56c", "How many stages, or ranks of a stage, there are."),
        "cpu_group": ("958bc38f1520", "Stages tell each other their addresses over it."),
    },
}

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_CPU_RUNNER = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"
_PPSD_RUNNER = "vllm_ppsd.worker.runner.PPSDRunnerMixin"
_SINGLE_RUNNER = "vllm_ppsd.single.runner.SingleRunnerMixin"

RUNNER: Table = {
    ("override", _PPSD_RUNNER, _RUNNER): {
        "_dummy_run": ("cee754861486", "The exit head is compiled after it."),
        "execute_model": ("0429bf56d86e", "A tick whose lanes are all stale is skipped."),
        "sample_tokens": ("7720103d2799", "Samples are compared with drafts after it."),
        "_update_states": ("075168ea8fa4", "Drafted tokens are filled in before it."),
        "_prepare_inputs": ("3fc170f920f6", "Stale rows are masked after it."),
        "_model_forward": ("a67a0b6a479b", "Verdicts are awaited before it."),
    },
    ("override", _PPSD_RUNNER, _CPU_RUNNER, "cpu"): {
        "load_model": ("ce19dc258d09", "The exit head is loaded after it."),
    },
    ("override", _PPSD_RUNNER, _RUNNER, "cuda"): {
        "load_model": ("cef623abed99", "The exit head is loaded after it."),
    },
    ("override", _SINGLE_RUNNER, _RUNNER): {
        "_dummy_run": ("cee754861486", "The exit head is compiled after it."),
        "_model_forward": ("a67a0b6a479b", "The exit head reads its auxiliary states."),
        "propose_draft_token_ids": ("980d46e41814", "PPSD's proposer drafts instead."),
        "_get_eagle3_aux_layers_from_config": (
            "5ff86766f3dc",
            "The auxiliary states are the exit's.",
        ),
    },
    ("call", "vllm_ppsd.worker.scorer", _RUNNER): {
        "_update_states": ("075168ea8fa4", "A skipped tick keeps the batch in step."),
    },
    ("call", "vllm_ppsd.worker", _RUNNER, "cuda"): {
        "get_model": ("75602c31e0da", "The exit head is built around the target."),
    },
    ("call", "vllm_ppsd.worker", _CPU_RUNNER, "cpu"): {
        "get_model": ("965fc530e02c", "The exit head is built around the target."),
    },
    ("meaning", "vllm_ppsd.worker", "vllm.model_executor.models.utils:"): {
        "make_empty_intermediate_tensors_factory": (
            "773d717e196f",
            "Makes what a skipped tick sends.",
        ),
    },
    ("meaning", "vllm_ppsd.worker", _RUNNER): {
        "_bookkeeping_sync": (
            "e00dbc91b181",
            "Discarded rows leave no token, and rewind generators.",
        ),
        "sync_and_gather_intermediate_tensors": (
            "16df48918018",
            "Copies received states into the buffers.",
        ),
    },
    ("meaning", "vllm_ppsd.single", _RUNNER): {
        "_get_spec_decode_draft_probs": ("c0428a03744b", "Reads what drafts were drawn from."),
        "_setup_eagle3_aux_hidden_state_outputs": ("54bfcc6b8ed7", "Asks for the exit's states."),
    },
    ("meaning", "vllm_ppsd.single.proposer", "vllm.v1.spec_decode.custom_class_proposer:"): {
        "create_custom_proposer": ("b090d3960d9f", "Makes the proposer from its class's name."),
    },
    ("field", "vllm_ppsd", _RUNNER): {
        "requests": ("2fe0bb1bb15e", "Request states by id; a rewind cuts their output."),
        "input_batch": ("0e029871c7a8", "The rows of a tick."),
        "device": ("0b1bffd4658c", "Where tensors go."),
        "model_config": ("32e6616bc8c3", "Dtype and vocabulary of the target."),
        "vllm_config": ("37c343efde1a", "The exit head is built with it."),
        "model": ("8fbf98098882", "Its empty states are what a skipped tick sends."),
    },
    ("field", "vllm_ppsd.worker", _RUNNER): {
        "discard_request_mask": ("9c4b50930e13", "Stale rows are masked in it."),
        "execute_model_state": ("a6803dad82ca", "None if a tick has nothing to sample."),
        "intermediate_tensors": ("97e03fe98bf5", "Allocated where eager CPU does not."),
        "max_num_tokens": ("27d94cd56b09", "The size of that allocation."),
        "sampler": ("a912fcedeaff", "Its last step is replaced."),
    },
    ("field", "vllm_ppsd.single", _RUNNER): {
        "attn_groups": ("2a06efa55719", "Attention metadata of drafts is built by group."),
        "kv_cache_config": ("6953e51208de", "Its groups number the block tables."),
        "max_model_len": ("7ff38921f544", "No draft lies behind it."),
        "drafter": ("c5b52e31575e", "The proposer."),
        "use_aux_hidden_state_outputs": ("15b4407be04e", "Set where the head has layers."),
        "_draft_probs": ("dbd1e7591854", "What drafts were drawn from, for the rejection sampler."),
        "_draft_prob_req_ids": ("2648a726ee17", "The rows of it."),
    },
    ("field", "vllm_ppsd", "vllm.v1.worker.gpu_input_batch:InputBatch"): {
        "req_ids": ("022cc94b2f6b", "The rows of a tick."),
        "num_reqs": ("43e09c27f2d6", "How many rows there are."),
        "req_id_to_index": ("c5d4c448815f", "The row of a request."),
        "num_tokens_no_spec": ("0bc88e0002f1", "A rewind sets it; drafts start behind it."),
        "num_prompt_tokens": ("edba18c046b6", "Tells a request's first token."),
        "generators": ("13e5d79b4b38", "Those of discarded rows are put aside."),
        "block_table": ("060c2fd06b56", "Where a draft's key/value entries go."),
    },
    ("field", "vllm_ppsd", "vllm.v1.worker.gpu_input_batch:CachedRequestState"): {
        "req_id": ("a5abcbb681c0", "Names a request."),
        "prompt_token_ids": ("b5eadb3dcb14", "The synthetic drafter looks it up."),
        "num_prompt_tokens": ("6b3f0900305f", "Where the output begins."),
        "output_token_ids": ("2fbcb9cd201d", "A rewind cuts it."),
        "sampling_params": ("1953ec8788c1", "Shape the head's logits."),
    },
    ("field", "vllm_ppsd.worker", "vllm.v1.utils:CpuGpuBuffer"): {
        "np": ("6ac50cb8f5c5", "Stale rows are written to it."),
    },
    ("call", "vllm_ppsd.worker", "vllm.v1.utils:CpuGpuBuffer"): {
        "copy_to_gpu": ("6ed8441f2cdf", "Then the device knows them."),
    },
    ("call", "vllm_ppsd.single.draft_batch", "vllm.v1."): {
        "worker.block_table:BlockTable.get_device_tensor": ("c9805dcffb77", "The blocks of a row."),
        "worker.utils:AttentionGroup.build_metadata_for_drafting": (
            "5e1888776473",
            "Of a batch of drafts.",
        ),
        "attention.backend:CommonAttentionMetadata": ("b83b991c7a22", "What it is built from."),
    },
    ("meaning", "vllm_ppsd.single.draft_batch", "vllm.v1."): {
        "worker.block_table:MultiGroupBlockTable.__getitem__": (
            "cace7c2afb8b",
            "A group's block table.",
        ),
    },
    ("field", "vllm_ppsd.single.draft_batch", "vllm.v1.worker."): {
        "block_table:BlockTable.block_size": ("475dffd8c327", "Where in a block a position lies."),
        "utils:AttentionGroup.layer_names": ("d16298c5e560", "The layers that metadata is for."),
    },
}

_SAMPLER = "vllm.v1.sample.ops.topk_topp_sampler:TopKTopPSampler"

SAMPLING: Table = {
    ("override", "vllm_ppsd.sampling.sampler.CoupledSampler", _SAMPLER): {
        "__init__": ("1d7136a10651", "Left out: it would choose vLLM's own `forward`."),
    },
    ("meaning", "vllm_ppsd.sampling.sampler.CoupledSampler.forward", _SAMPLER): {
        "forward_native": ("49846830fb82", "Its arguments and results are ours."),
    },
    ("field", "vllm_ppsd.sampling.sampler", _SAMPLER): {
        "logprobs_mode": ("9f499834cb60", "Says what is returned beside tokens."),
    },
    ("call", "vllm_ppsd.sampling", "vllm.v1.sample.ops.topk_topp_sampler:"): {
        "apply_top_k_top_p": ("6550653c22b4", "Shapes logits as vLLM's sampler does."),
    },
    ("meaning", "vllm_ppsd.sampling.drafts.shape", "vllm.v1.sample."): {
        "sampler:Sampler.sample": ("fd54cc022b3e", "Stage 0 shapes logits in the same order."),
        "sampler:Sampler.apply_temperature": ("13addd5ee8d7", "Stage 0 does the same."),
        "logits_processor.builtin:MinPLogitsProcessor.apply": (
            "7a4b88a75b74",
            "Stage 0 does the same.",
        ),
    },
    ("field", "vllm_ppsd.worker.scorer", "vllm.v1.sample.sampler:Sampler"): {
        "topk_topp_sampler": ("fd6c96b2a4b4", "The last step, replaced for coupled drafts."),
    },
}

_SPECULATIVE = "vllm.config.speculative:SpeculativeConfig"
_COMPILED = "vllm.compilation.wrapper:TorchCompileWithNoGuardsWrapper"
_LAYERS = "vllm.model_executor.layers"
_ATTENTION = f"{_LAYERS}.attention.attention:"
_MODELS = "vllm.model_executor.models."

CONFIG_AND_HEAD: Table = {
    ("override", "vllm_ppsd.config.ppsd.PPSDConfig", _SPECULATIVE): {
        "method": ("3aba9286c06d", "It is `ppsd`."),
        "model": ("d6d6d49ccad4", "It is the exit head's folder."),
        "__post_init__": ("9c259617e4d8", "Nothing is resolved: there is no draft model."),
        "_verify_args": ("f9421ea8e372", "PPSD's own checks."),
        "compute_hash": ("328c3382b520", "Compiled graphs depend on the head."),
        "__repr__": ("13824b38c263", "Shows PPSD's fields."),
        "uses_draft_model": ("691040bd7391", "Slots for drafts are allocated on one device."),
    },
    ("field", "vllm_ppsd.config", _SPECULATIVE): {
        "num_speculative_tokens": ("4938a187dbe6", "At least 1 for vLLM."),
        "target_model_config": ("acb719bb0521", "The target."),
        "target_parallel_config": ("83853fcd574b", "The target's ranks."),
    },
    ("meaning", "vllm_ppsd.config.entry", "vllm.engine.arg_utils:EngineArgs"): {
        "create_engine_config": ("626ab54ba6f0", "Reads `scheduler_cls` after the hook."),
    },
    ("field", "vllm_ppsd.config", "vllm.engine.arg_utils:EngineArgs"): {
        "speculative_config": ("7ba6aa93d0fb", "Options of PPSD."),
        "spec_method": ("957b7cd262db", "Options of PPSD."),
        "spec_model": ("f368bf953f76", "Options of PPSD."),
        "spec_tokens": ("a3ddba83648c", "Options of PPSD."),
        "scheduler_cls": ("ba8026482caa", "Set to PPSD's scheduler."),
        "async_scheduling": ("39ede13e6345", "Set to False."),
    },
    ("field", "vllm_ppsd.config", "vllm.config.parallel:ParallelConfig"): {
        "worker_cls": ("a40744dc6106", "Set to PPSD's worker."),
        "local_world_size": ("a21a9e794781", "How many workers share this node's cores."),
    },
    # The decorator `support_torch_compile` makes it a base.
    ("override", "vllm_ppsd.exit_head.module.ExitHead", _COMPILED): {
        "__init__": ("4ec97cbf3169", "Our layers."),
        "forward": ("3a9fdfe4e23b", "Called once to compile; the graph has no guards after that."),
    },
    ("override", "vllm_ppsd.single.early_layers.EarlyLayers", _COMPILED): {
        "__init__": ("4ec97cbf3169", "The target's layers."),
        "forward": ("3a9fdfe4e23b", "Called once to compile; the graph has no guards after that."),
    },
    ("call", "vllm_ppsd.exit_head.layers", _ATTENTION): {
        "unified_kv_cache_update": ("17ae140d6404", "Writes key/value entries without attending."),
    },
    ("field", "vllm_ppsd.exit_head.layers", f"{_ATTENTION}Attention"): {
        "attn_backend": ("10d070526aeb", "Says whether entries can be written alone."),
        "num_kv_heads": ("e26ee0d9c1ea", "The shape of entries."),
        "head_size": ("8084902b0bca", "The shape of entries."),
        "layer_name": ("1f42743888f8", "Whose entries they are."),
    },
    ("field", "vllm_ppsd.exit_head.layers", "vllm.v1.attention.backend:AttentionBackend"): {
        "forward_includes_kv_cache_update": ("b86b532c9f0c", "Then the layer is run whole."),
    },
    ("meaning", "vllm_ppsd.exit_head.layers.write_entries", _MODELS): {
        "llama:LlamaAttention.forward": ("4408c421cfca", "Keys and values are made as it does."),
        "mistral:MistralAttention.forward": (
            "e9ab3a3ad35f",
            "Keys and values are made as it does.",
        ),
        "qwen2:Qwen2Attention.forward": ("ba0c8dad0d65", "Keys and values are made as it does."),
        "qwen3:Qwen3Attention.forward": ("0cd83a1ca6e0", "Keys and values are made as it does."),
    },
    ("meaning", "vllm_ppsd.exit_head.module.ExitHead.observe", _MODELS): {
        "llama:LlamaDecoderLayer.forward": (
            "71daafe15adc",
            "The attention's input is normed as it does.",
        ),
        "mistral:MistralDecoderLayer.forward": (
            "432f56af86f4",
            "The attention's input is normed as it does.",
        ),
        "qwen2:Qwen2DecoderLayer.forward": (
            "ed1f90a51dab",
            "The attention's input is normed as it does.",
        ),
        "qwen3:Qwen3DecoderLayer.forward": (
            "ed1f90a51dab",
            "The attention's input is normed as it does.",
        ),
    },
    ("meaning", "vllm_ppsd.single.early_layers.EarlyLayers.forward", _MODELS): {
        "llama:LlamaModel.forward": (
            "60c105ae5e50",
            "The layers before the exit are run as it does.",
        ),
        "mistral:MistralModel.forward": (
            "402c09fe7d4b",
            "The layers before the exit are run as it does.",
        ),
        "qwen2:Qwen2Model.forward": (
            "a2139178a2bc",
            "The layers before the exit are run as it does.",
        ),
    },
    ("field", "vllm_ppsd.exit_head.module", f"{_LAYERS}.logits_processor:LogitsProcessor"): {
        "use_all_gather": ("28807ecd878e", "Every rank drafts, so every rank needs the logits."),
    },
}

_QUEUE = "vllm.distributed.device_communicators.shm_broadcast:MessageQueue"

BESIDE_HOOKS: Table = {
    ("meaning", "vllm_ppsd.hooks.changes.queue_room", _QUEUE): {
        "__init__": ("e894a9873b52", "Its chunks are ten, of the size given."),
    },
    ("field", "vllm_ppsd.hooks.changes", "vllm.v1.engine.utils:CoreEngineProcManager"): {
        "_request_shutdown_timeout": ("384c9845e1e8", "Zero unless the user gave one."),
    },
}

ENTRIES = entries(HOOKS, ENGINE, WORKER, RUNNER, SAMPLING, CONFIG_AND_HEAD, BESIDE_HOOKS)
