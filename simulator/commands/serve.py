"""The command ``serve``: an emulated engine."""

from argparse import Namespace

from simulator.commands.shared import plain_errors
from simulator.emulator.serving import ServeOptions, run_engine


def run(options: Namespace) -> None:
    """Serve until a signal."""
    given = ServeOptions(
        card=options.card,
        port=options.port,
        model=options.model,
        tp=options.tp,
        pp=options.pp,
        precision=options.precision,
        kv_precision=options.kv_precision,
        protocol=options.protocol,
        host=options.host,
        model_name=options.model_name,
        name=options.name,
        seed=options.seed,
        spread=options.spread,
        speedup=options.speedup,
        mean_output_tokens=options.mean_output_tokens,
        seqs_max=options.max_num_seqs,
        chunk_tokens=options.max_num_batched_tokens,
        model_tokens_max=options.max_model_len,
        queue_max=options.max_num_queued_reqs,
        queue_tokens_max=options.max_num_queued_tokens,
        block_tokens=options.block_size,
        kv_blocks=options.num_gpu_blocks,
        priority=options.priority,
        reports_cached_tokens=options.enable_prompt_tokens_details,
        until_eof=options.until_eof,
    )
    with plain_errors():
        run_engine(given)
