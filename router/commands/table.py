"""The commands of ``headroom`` and their options. Imports nothing of what they do."""

import os
from argparse import ArgumentParser
from pathlib import Path

from router.arguments import Command, Program, address, at_least, number_within, port
from router.version import version

GATEWAY_URL = "http://127.0.0.1:8080"
DEMO_PORT = 8080
SERVE_PORT = 8080


def _config(parser: ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="the YAML config file")


def _verbose(parser: ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")


def _key(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--key",
        default=os.environ.get("HEADROOM_ADMIN_KEY", ""),
        help="the gateway's admin key; default: the environment variable HEADROOM_ADMIN_KEY",
    )


def _url(parser: ArgumentParser) -> None:
    parser.add_argument("--url", type=address, default=GATEWAY_URL, help=f"a running gateway; default: {GATEWAY_URL}")
    _key(parser)


def _backends(parser: ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--backend", action="append", metavar="URL", required=required, help="an engine's address; may be repeated"
    )


def _serve(parser: ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="the YAML config file")
    _backends(parser)
    parser.add_argument(
        "--port", type=port, metavar="PORT", help=f"where to listen, with --backend; default: {SERVE_PORT}"
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="processes that share the port; default: `listen.workers` of the config",
    )
    _verbose(parser)


def _worker(parser: ArgumentParser) -> None:
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    for name in ("slot", "slots"):
        parser.add_argument(name, type=int)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("parent", type=int, help="the descriptor of this worker's end of a socket pair")
    _verbose(parser)


def _init(parser: ArgumentParser) -> None:
    _backends(parser, required=True)
    parser.add_argument(
        "--timeout", type=number_within(0.1), default=5.0, metavar="S", help="seconds to wait for a page; default: 5"
    )


def _import(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to import; -: standard input")
    parser.add_argument(
        "--from",
        dest="format",
        metavar="FORMAT",
        help="haproxy, litellm, llm-d, nginx or vllm-router; default: recognised by the content",
    )


def _check(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the YAML config file")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="replay these requests: a gateway's record, or any trace"
    )
    parser.add_argument(
        "--current",
        type=Path,
        metavar="FILE",
        help="the config that serves now, whose SLO attainment must not drop; default: the policy least_work",
    )


def _rollback(parser: ArgumentParser) -> None:
    parser.add_argument("--to", metavar="VERSION", help="a version from /admin/policy; default: the last good one")
    _url(parser)


def _policy(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("status", "diff", "reload"), help="what to do, see above")
    parser.add_argument(
        "versions",
        nargs="*",
        metavar="VERSION",
        help="of `diff`: one or two versions of the history; default: the one before, and the one that serves",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="of `reload`: whatever SLO attainment the policies lose in the replay; the audit log states it",
    )
    _url(parser)


def _demo(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--port",
        type=port,
        metavar="PORT",
        help=f"where to listen; default: {DEMO_PORT}, or the next free port",
    )
    parser.add_argument(
        "--speed", type=number_within(0.01), default=1.0, metavar="X", help="run the engines X times as fast as real"
    )


def _autoscale(parser: ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--once", action="store_true", help="print the advice once and end")
    _key(parser)
    _verbose(parser)


def _epp(parser: ArgumentParser) -> None:
    _config(parser)
    _verbose(parser)


def _sidecar(parser: ArgumentParser) -> None:
    _config(parser)
    _verbose(parser)


def _register(parser: ArgumentParser) -> None:
    redis = os.environ.get("HEADROOM_REDIS_URL", "")
    parser.add_argument("--url", required=True, help="the engine's address for routers, as http://$(POD_IP):8000")
    parser.add_argument("--engine", metavar="URL", help="its address for this process; default: --url")
    parser.add_argument(
        "--redis",
        metavar="URL",
        default=redis,
        required=not redis,
        help="the routers' `state.redis_url`; default: the environment variable HEADROOM_REDIS_URL",
    )
    parser.add_argument("--pool", default="default", help="the routers' `state.pool`; default: default")
    parser.add_argument("--name", help="the backend's name; default: of its address")
    parser.add_argument(
        "--label",
        action="append",
        metavar="NAME=VALUE",
        help="a fact of the backend (card=h100, tp=2, variant=big, ...) or any other label; may be repeated",
    )
    parser.add_argument(
        "--ttl",
        type=number_within(0.5),
        default=15.0,
        metavar="S",
        help="seconds without a renewal after which it is gone; default: 15",
    )
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable with the engine's bearer token")
    _verbose(parser)


def _api_key(parser: ArgumentParser) -> None:
    parser.add_argument("--tenant", required=True, help="whose key it is")
    parser.add_argument("--slo-class", metavar="NAME", help="the SLO class of its requests; default: the config's")
    parser.add_argument("--hash", action="store_true", help="hash the key on stdin, in place of making one")


def _replay_record(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what `record.file` of the config named")


PROGRAM = Program(
    name="headroom",
    module="router",
    help="A latency-SLO router for LLM engines.",
    version=version,
    commands=(
        Command(
            "serve",
            "router.commands.serve",
            "Route requests to the engines of a config, or of --backend.\n\n"
            "With --backend no config is needed: what each engine is and serves is read from it when it answers.\n"
            "Serves until SIGTERM or Ctrl-C, then lets streams end.\n"
            "SIGHUP, or a change of the file, reloads the config.",
            _serve,
            serves=True,
        ),
        Command(
            "epp",
            "router.commands.epp",
            "Pick endpoints for Envoy, Istio or GKE gateways: the core decides, the proxy carries the bytes.\n\n"
            "An external processor (ext-proc) on `epp.port` of the config, as Gateway API's InferencePool requires;\n"
            "health, metrics and admin paths are on `listen.port`. Needs: pip install 'headroom-router[epp]'.",
            _epp,
            serves=True,
        ),
        Command(
            "init",
            "router.commands.init",
            "Print a config for these engines, commented, with what they report of themselves.\n\n"
            "Redirect it to a file. Engines that do not answer are named on stderr.",
            _init,
        ),
        Command(
            "import",
            "router.commands.importing",
            "Print a config made of another router's: vllm-router, LiteLLM, llm-d, nginx, HAProxy.\n\n"
            "Redirect it to a file. Each setting without an equivalent is named in a comment, with its line. Secrets\n"
            "become references to environment variables, which the config's first lines list.",
            _import,
        ),
        Command(
            "check",
            "router.commands.check",
            "Validate a config: print file, line and key of every fault.\n\n"
            "With --trace or --current, replay its policies as a reload would; SLO attainment must not drop.\n"
            "Exit status: 0 when the config is good, else 1.",
            _check,
        ),
        Command(
            "demo",
            "router.commands.demo",
            "Run the gateway with three emulated engines of different cards, sizes and protocols.",
            _demo,
            serves=True,
        ),
        Command("top", "router.commands.top", "Show a running gateway's fleet in the terminal.", _url, serves=True),
        Command(
            "rollback",
            "router.commands.rollback",
            "Return a running gateway to a config that served before.\n\nThe config file stays as it is.",
            _rollback,
        ),
        Command(
            "policy",
            "router.commands.policy",
            "Show and change what a running gateway serves with: status, diff, reload.\n\n"
            "status: the policies, a validation in progress, the last result with its figures, the history.\n"
            "diff:   what differs between two versions of the config and of its policy files.\n"
            "reload: take the config file as it is now, and wait for the validation.",
            _policy,
        ),
        Command(
            "key",
            "router.commands.key",
            "Make an API key: print it once, and the entry with its hash for the config or its `key_file`.\n\n"
            "The entry goes to stdout: headroom key --tenant team-a >> keys.yaml",
            _api_key,
        ),
        Command(
            "sidecar",
            "router.commands.sidecar",
            "Read the engines' metrics and publish them to Redis.\n\n"
            "For gateways whose config has `scrape: {source: state}`.",
            _sidecar,
            serves=True,
        ),
        Command(
            "register",
            "router.commands.register",
            "Announce an engine to the routers of a pool, beside which it runs.\n\n"
            "For routers whose config has `discover: [{redis: {}}]`. Announces the card, and what the engine reports.\n"
            "SIGTERM announces that the engine ends, so that routers send it nothing more.",
            _register,
            serves=True,
        ),
        Command(
            "autoscale",
            "router.commands.autoscale",
            "Compute how many replicas of each variant the demand needs.\n\n"
            "Writes the advice and its reason to the log, and to a Prometheus gauge.",
            _autoscale,
            serves=True,
        ),
        Command(
            "replay-record",
            "router.commands.replay_record",
            "Check that a record's events give the decisions recorded.\n\n"
            "Prints every decision that differs. Exit status: 0 when none does, else 1.",
            _replay_record,
        ),
        Command("worker", "router.commands.worker", "One of several workers; `serve` starts it.", _worker, True, True),
    ),
)
