"""The one exception for a user's mistake, and how a command ends.

Everything that a user can get wrong (a config, a file, a model, an adapter, a run directory) raises `UserError` with
one sentence that says what is wrong, where, and what to do. The commands print that sentence without a traceback, and
so they do with what the system says of a file or a disk; anything else that is raised is a bug of ours and keeps its
traceback.
"""

import functools
import io
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input, explained in one sentence."""


def command(stopped: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make of a function the `main` of a command: its exit status is what the function returns, 2 with a sentence for a
    user's mistake or a file that can't be used, and 130 with the sentence `stopped` for Ctrl-C.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def status(*arguments, **options) -> int:
            # A terminal may know fewer characters than a model, and what is typed there may be no UTF-8.
            for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors=errors)
            try:
                code = main(*arguments, **options)
                sys.stdout.flush()
                return code
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except BrokenPipeError:  # whoever reads has seen enough, as `head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes in the end
                return 1
            except OSError as error:
                print(f"error: {error.filename or 'The output'} can't be used ({error.strerror}).", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"\n{stopped}", file=sys.stderr)
                return 130

        return status

    return decorate
