"""`gchat web` and `gchat web admin …` as the command line hands them over."""

from collections.abc import Callable, Collection

from gaia.config import parse

Known = Callable[[str, list[str], Collection[str]], str]


def main(args: list[str], known: Known) -> None:
    """Runs the server, or one verb of its administration.

    Args:
        args: what follows `gchat web`.
        known: returns the verb that arguments begin with, or says which there are.
    """
    if args[:1] == ["admin"]:
        from gchat.serve.site.admin_command import USAGE, VERBS

        if args[1:2] in ([], ["-h"], ["--help"]):
            print(USAGE)
            return
        verb = known("gchat web admin", args[1:], VERBS)
        command = VERBS[verb]
        prog = f"gchat web admin {verb}"
        given = parse(command, args[2:], prog=prog, description=command.__doc__)
        given.check()
        given.run()
        return
    from gchat.serve.site.options import Web

    options = parse(Web, args, prog="gchat web", description=Web.__doc__)
    from gchat.serve.site.command import web

    web(options)
