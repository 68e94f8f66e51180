"""What PPSD says in the log when it was asked for."""

from __future__ import annotations

from vllm.logger import init_logger

from vllm_ppsd.config.ppsd import PPSDConfig
from vllm_ppsd.costs import ModelShape, best_one_device_speedup
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.protocol.bursts import describe

logger = init_logger("vllm.plugins.ppsd")

ACCEPTANCES = (0.6, 0.7, 0.8, 0.9)


def announce(config: PPSDConfig, shape: ModelShape) -> None:
    """Say the mode, its layout, and what acceptance rates would be worth in it."""
    if config.is_pipelined:
        logger.info(
            "PPSD: %d pipeline stages with %s layers, exit layer %d, exit head %s, "
            "at most %d tick(s) of a request ahead of their verdicts, %s",
            len(config.layer_partition),
            "+".join(map(str, config.layer_partition)),
            config.exit_layer,
            config.model,
            config.max_drafts,
            _lanes(config),
        )
    else:
        logger.info(
            "PPSD: one device, exit layer %d of %d, exit head %s, up to %d draft(s) a step, "
            "until one has a probability under %.2f",
            config.exit_layer,
            shape.num_layers,
            config.model,
            config.max_drafts,
            config.draft_threshold or 0.0,
        )
    if config.max_drafts and config.longest_burst == 1:
        logger.info(
            "PPSD: expected speedup by acceptance rate, from the weights to read: %s",
            ", ".join(f"{a} -> {s:.2f}" for a, s in expected_speedups(config, shape).items()),
        )
    if config.synthetic_drafter is not None:
        logger.warning(
            "PPSD: SYNTHETIC DRAFTER. Drafts come from recorded output (%s) and are "
            "right with probability %.2f. For tests and benchmarks only.",
            config.synthetic_drafter.record,
            config.synthetic_drafter.acceptance,
        )


def _lanes(config: PPSDConfig) -> str:
    """Return in words how long a pipeline's lanes are."""
    if config.plan is None:
        return f"lanes of up to {config.longest_burst} tokens, chosen for each request"
    return "lanes of one token" if config.longest_burst == 1 else describe(config.plan)


def expected_speedups(config: PPSDConfig, shape: ModelShape) -> dict[float, float]:
    """Return acceptance rates with the speedup over plain decoding, by weights alone."""
    head = ExitHeadFolder.open(config.model).config if config.model else None
    if config.is_pipelined:
        costs = shape.tick_costs(config.layer_partition, head)
        return {a: costs.plain / costs.per_token(a, config.max_drafts) for a in ACCEPTANCES}
    assert head is not None
    draft, most = shape.draft_cost(head), config.max_drafts
    return {a: best_one_device_speedup(most, draft, a) for a in ACCEPTANCES}
