"""The console script: runs the command line and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Exit code 0: fine; 1: the work failed; 2: wrong use; 75: stopped by a signal and saved, to be run again.

    A traceback only with ``--debug``.
    """
    from twinbench.foundation.errors import InputError, RunFailure
    from twinbench.harness.cli import app
    from twinbench.pretraining.interrupt import Interrupted

    debug = "--debug" in sys.argv
    try:
        app()
    except InputError as error:
        _fail(error, debug, 2)
    except Interrupted as error:
        _fail(error, debug, os.EX_TEMPFAIL)
    except RunFailure as error:
        _fail(error, debug, 1)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print("  next:    run the same command with --debug and report the traceback", file=sys.stderr)
        sys.exit(1)


def _fail(error: Exception, debug: bool, code: int) -> None:
    if debug:
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
