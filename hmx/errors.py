"""The one exception for a user's mistake.

Everything that a user can get wrong (a config, a file, a model, an adapter, a run directory) raises `UserError` with
one sentence that says what is wrong, where, and what to do. The commands print that sentence without a traceback;
anything else that is raised is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """Bad input, explained in one sentence."""
