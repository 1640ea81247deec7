"""`lm_eval completion SHELL`: a script that has the shell complete commands, flags, recipes, tasks, runs and files.

The scripts ask `lm_eval __complete SHELL ...` at each tab, which walks the parsers that the command line is made of:
lm-eval's own commands and flags are among them, of whatever release. Neither torch nor lm-eval's task files are loaded;
names of tasks are those of the task index, once a run has made it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness_ext.cli.completion_values import FILES, Suggestion, files, values_of
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.commands import DEFAULT_DATABASE

ASK = "__complete"
"""The first word of the command line by which a script asks."""
SHELLS = ("bash", "zsh", "fish")
PROGRAMS = "lm_eval lm-eval lm-eval-recipes"
_UNSAFE = frozenset(" \t\"'`$\\!&|;<>(){}[]*?#~^")

_BASH = f"""# bash completion for lm_eval; load it with:  source <(lm_eval completion bash)
_lm_eval_complete() {{
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        [ -n "$line" ] && COMPREPLY+=("$line")
    done < <("$1" {ASK} bash "$COMP_WORDBREAKS" "${{COMP_LINE:0:COMP_POINT}}" 2>/dev/null)
    if [ "${{#COMPREPLY[@]}}" -eq 1 ]; then
        case "${{COMPREPLY[0]}}" in */ | *= | *:) compopt -o nospace 2>/dev/null ;; esac
    fi
    return 0
}}
complete -F _lm_eval_complete {PROGRAMS}
"""
_ZSH = f"""#compdef {PROGRAMS}
# zsh completion for lm_eval; load it with:  source <(lm_eval completion zsh)
_lm_eval_complete() {{
    local value description
    local -a ended open ended_said open_said
    while IFS=$'\\t' read -r value description; do
        [[ -n "$value" ]] || continue
        if [[ "$value" == *[/=:] ]]; then
            open+=("$value"); open_said+=("$value${{description:+  -- $description}}")
        else
            ended+=("$value"); ended_said+=("$value${{description:+  -- $description}}")
        fi
    done < <("${{words[1]}}" {ASK} zsh "${{(@Q)words[2,CURRENT]}}" 2>/dev/null)
    (( $#open )) && compadd -S '' -l -d open_said -- "${{open[@]}}"
    (( $#ended )) && compadd -l -d ended_said -- "${{ended[@]}}"
}}
if [[ "$funcstack[1]" == _lm_eval ]]; then _lm_eval_complete "$@"; else
    (( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
    compdef _lm_eval_complete {PROGRAMS}
fi
"""
_FISH = f"""# fish completion for lm_eval; load it with:  lm_eval completion fish | source
function __lm_eval_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    $before[1] {ASK} fish $before[2..-1] "$current" 2>/dev/null
end
for program in {PROGRAMS}
    complete -c $program -f -a '(__lm_eval_complete)'
end
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


class Completion(RecipesCommand):
    """Print a completion script."""

    name = "completion"
    summary = "Print a completion script for bash, zsh or fish"
    description = (
        "Print a script for your shell. It completes commands, flags, recipes, tasks, runs (MODEL/RECIPE and ids) and"
        " files, with lm-eval's own commands among them."
    )
    epilog = """
examples:
  $ source <(lm_eval completion bash)       # in ~/.bashrc
  $ source <(lm_eval completion zsh)        # in ~/.zshrc, after compinit
  $ lm_eval completion fish > ~/.config/fish/completions/lm_eval.fish
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", choices=SHELLS, help="The shell that the script is for")
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        print(_SCRIPTS[args.shell], end="")


class _CursorPlace(NamedTuple):
    """Where the word to be completed stands. pending: the option whose value it is; positionals: how many stand before
    it.
    """

    parser: argparse.ArgumentParser
    pending: argparse.Action | None
    positionals: int
    database: Path


def answer(parser: argparse.ArgumentParser, asked: Sequence[str]) -> None:
    """Print what completes the last word, a line each, for a script. asked: the shell and what it sent."""
    shell, *rest = asked
    if shell == "bash":
        breaks, line = rest
        words, quote = _words(line)
        suggestions = suggested(parser, words[1:])
        kept = "" if quote else words[-1]
        start = max((kept.rfind(letter) for letter in ":=@" if letter in breaks), default=-1) + 1
        for suggestion in suggestions:
            text = suggestion.text[start:]
            if not quote or not _UNSAFE & {quote} & set(text):
                print(text if quote else _escaped(text))
        return
    for suggestion in suggested(parser, rest or [""]):
        print(f"{suggestion.text}\t{suggestion.description}" if suggestion.description else suggestion.text)


def suggested(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[Suggestion]:
    """What completes the last of these words, which follow the program's name."""
    *before, current = words[1:] if len(words) > 1 and words[0] == "help" else words
    place = _place(parser, before)
    if current.startswith("--") and "=" in current and place.pending is None:
        option, _, begun = current.partition("=")
        action = place.parser._option_string_actions.get(option)
        found = [] if action is None else _values(place, action, begun)
        return [suggestion._replace(text=f"{option}={suggestion.text}") for suggestion in found]
    if current.startswith("-"):
        return _options(place.parser, current)
    found = [] if place.pending is None else _values(place, place.pending, current)
    if place.pending is not None and not _takes_more(place.pending):
        return _printable(found)
    return _printable([*found, *_positional(place, current)])


def _place(parser: argparse.ArgumentParser, before: Sequence[str]) -> _CursorPlace:
    commands = _commands_of(parser)
    if before and before[0].startswith("-") and before[0] not in ("-h", "--help", "--version"):
        parser = commands["run"]  # lm-eval's old form, without a command
    pending: argparse.Action | None = None
    left, positionals, database = 0, 0, DEFAULT_DATABASE
    for number, word in enumerate(before):
        if number and before[number - 1] == "--database":
            database = Path(word)
        if word.startswith("-") and len(word) > 1:
            pending = None if "=" in word else parser._option_string_actions.get(word)
            left = _most_values(pending)
            pending = pending if left else None
        elif pending is not None:
            left -= 1
            pending = pending if left > 0 else None
        elif word in (inner := _commands_of(parser)):
            parser, positionals = inner[word], 0
        else:
            positionals += 1
    return _CursorPlace(parser, pending, positionals, database)


def _most_values(action: argparse.Action | None) -> int:
    if action is None:
        return 0
    counts = {None: 1, "?": 1, "+": sys.maxsize, "*": sys.maxsize}
    return action.nargs if isinstance(action.nargs, int) else counts.get(action.nargs, 1)


def _takes_more(action: argparse.Action) -> bool:
    """Whether something else than a value may stand behind an option, because the value may be missing."""
    return action.nargs in ("?", "*")


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def _options(parser: argparse.ArgumentParser, begun: str) -> list[Suggestion]:
    return [
        Suggestion(option, _first_sentence(action.help))
        for option, action in parser._option_string_actions.items()
        if option.startswith(begun) and action.help != argparse.SUPPRESS
    ]


def _positional(place: _CursorPlace, begun: str) -> list[Suggestion]:
    helps = {
        pseudo.dest: pseudo.help
        for action in place.parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for pseudo in action._choices_actions
    }
    commands = [
        Suggestion(name, _first_sentence(helps.get(name)))
        for name in _commands_of(place.parser)
        if name.startswith(begun) and not place.positionals
    ]
    actions = [
        action
        for action in place.parser._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
    ]
    if not actions:
        return commands
    number = min(place.positionals, len(actions) - 1)
    if place.positionals >= len(actions) and _most_values(actions[-1]) < sys.maxsize:
        return commands
    return [*commands, *_values(place, actions[number], begun)]


def _values(place: _CursorPlace, action: argparse.Action, begun: str) -> list[Suggestion]:
    if action.choices is not None:
        return [Suggestion(str(choice)) for choice in action.choices if str(choice).startswith(begun)]
    if action.metavar in FILES or action.dest in FILES:
        return files(begun)
    return values_of(place.parser.prog, action, begun, place.database)


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].partition(" (default")[0].rstrip(".").replace("%%", "%")


def _printable(found: Sequence[Suggestion]) -> list[Suggestion]:
    """Those that can be typed: names come from files that anybody may have written."""
    kept = {suggestion.text: suggestion for suggestion in reversed(found) if suggestion.text.isprintable()}
    return list(reversed(kept.values()))


def _words(line: str) -> tuple[list[str], str]:
    """The words of a shell's line up to the cursor, and the quotation mark that the last one is still in, if any."""
    words, word, quote, begun = [], "", "", False
    letters = iter(line)
    for letter in letters:
        if letter == "\\" and quote != "'":
            word, begun = word + next(letters, ""), True
        elif quote:
            quote, word = ("", word) if letter == quote else (quote, word + letter)
        elif letter in "'\"":
            quote, begun = letter, True
        elif letter.isspace():
            if begun:
                words.append(word)
            word, begun = "", False
        else:
            word, begun = word + letter, True
    return [*words, word], quote


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in _UNSAFE else letter for letter in text)
