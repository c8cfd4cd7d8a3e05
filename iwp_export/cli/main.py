"""The command `iwp-export`: finds the verb, runs it, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from iwp_export.bundle.schema import CONTROL
from iwp_export.errors import IwpError, in_one_line
from iwp_export.version import __version__

VERBS = {
    "export": "write a checkpoint as a bundle (what happens with no verb)",
    "calibrate": "choose the pruning settings that keep a model's answers, on your own images",
    "estimate": "estimate speed and memory on a device, with and without pruning",
    "build": "build TensorRT engines from a bundle",
    "run": "answer a question about images",
    "validate": "compare an artefact with its checkpoint, and its answers with the unpruned model's",
    "bench": "measure latency, pruned and unpruned in turn, against limits",
    "report": "make the page of a report of validate or bench, or compare reports",
    "inspect": "show what is in a bundle",
    "doctor": "show what this machine can export, build and run, and what to install",
}
"""Verbs, each a module of this package, with what they do."""

EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE, EXIT_TERMINATED = 1, 130, 141, 143
"""A user's error, of a verb that says no other; and, as shells count them, 128 + SIGINT, SIGPIPE, SIGTERM."""

NOISY_LOGGERS = ("huggingface_hub", "onnxscript", "onnx_ir", "torch", "transformers")


class Verb(Protocol):
    """What a verb's module defines."""

    DESCRIPTION: str
    EXAMPLES: str

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the arguments. Must import nothing heavy: `--help` answers at once."""

    @staticmethod
    def execute(args: argparse.Namespace) -> int | None:
        """Do it; what needs torch, transformers or a backend is imported here.

        A verb with gates returns 1 if one failed, and defines `EXIT_ERROR = 2`: it could not run.

        Raises:
            IwpError: what the user can mend.
        """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; 1 for an error that a user can mend; 130 for Ctrl-C.

    Of a verb with gates 1 is a gate that failed, and 2 that it could not run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = bool(arguments) and arguments[0] in VERBS
    verb = arguments.pop(0) if named else "export"
    module: Any = importlib.import_module(f"iwp_export.cli.{verb}")
    parser = build_parser(module, f"iwp-export {verb}" if named else "iwp-export")
    if not arguments and not named:
        parser.print_help(sys.stderr)
        return 2
    return _guarded(module, parser, parser.parse_args(arguments))


def build_parser(verb: Verb, prog: str) -> argparse.ArgumentParser:
    """The parser of one verb; under the bare name `iwp-export` it also lists the others."""
    bare = prog == "iwp-export"
    verbs = "verbs:\n" + "".join(f"  {name:<9} {text}\n" for name, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="iwp-export MODEL [options]\n       iwp-export VERB ... (iwp-export VERB --help)" if bare else None,
        description=verb.DESCRIPTION,
        epilog=(verbs + "\n" if bare else "") + "examples:\n" + verb.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if bare:
        parser.add_argument("--version", action="version", version=f"iwp-export {__version__}")
    verb.configure(parser)
    return parser


def _guarded(verb: Verb, parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _terminate)
    _silence()
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer or a name may have what the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = verb.execute(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing to say to it, nor at the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt:
        print("\niwp-export: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (IwpError, ImportError, OSError) as error:
        # An ImportError from inside this package is a bug, and shows where.
        if os.environ.get("IWP_EXPORT_DEBUG") or str(getattr(error, "name", "")).startswith("iwp_export"):
            raise
        print(f"iwp-export: error: {_one_line(error, verb, parser)}", file=sys.stderr)
        return getattr(verb, "EXIT_ERROR", EXIT_ERROR)
    except Exception:
        if not hasattr(verb, "EXIT_ERROR"):
            raise
        traceback.print_exc()  # a bug; Python's own exit code would say that a gate failed
        return int(verb.EXIT_ERROR)
    return code or 0


def _terminate(signum: int, frame: object) -> NoReturn:
    """Leave through the open `with` blocks, which remove what is half written."""
    sys.exit(EXIT_TERMINATED)


def _silence() -> None:
    """Keep libraries' warnings off the terminal: what matters reaches the user as an error or a result."""
    if os.environ.get("IWP_EXPORT_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def _one_line(error: Exception, verb: Verb, parser: argparse.ArgumentParser) -> str:
    """What was wrong, and the verb's own names of the parameters that the error is about."""
    text = in_one_line(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    text = CONTROL.sub("\ufffd", text)  # a file's name could steer the terminal
    flags = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    if options := [flags[name] for name in getattr(error, "options", ()) if name in flags]:
        text += f" ({', '.join(options)})"
    if isinstance(error, ModuleNotFoundError) and hasattr(verb, "NEEDS"):
        return f"{verb.NEEDS[0]} needs {error.name}; to get it: pip install 'iwp-export[{verb.NEEDS[1]}]'"
    if isinstance(error, ImportError):
        return f"a package cannot be imported ({text}); iwp-export doctor shows what to install"
    return text


if __name__ == "__main__":
    sys.exit(main())
