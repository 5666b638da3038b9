"""Files that come with the package: found by their bare names, as other files are by their paths."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmt_ds.errors import ConfigError


@dataclass(frozen=True)
class Shipped:
    """The shipped files of one kind.

    Attributes:
        kind: what messages call one of them.
        heading: what their list begins with in a message.
        folders: where they are.
        suffix: what their files' names end with.
    """

    kind: str
    heading: str
    folders: Sequence[Path]
    suffix: str

    def names(self) -> list[str]:
        """Names that are known without a path."""
        return sorted({path.stem for folder in self.folders for path in folder.glob(f"*{self.suffix}")})

    def label(self, path: Path) -> str:
        """How a file is named in messages: a shipped one without the place of the installation."""
        folder = path.resolve().parent
        is_shipped = folder in [shipped.resolve() for shipped in self.folders]
        return f"{folder.name}/{path.name}" if is_shipped else str(path)

    def find(self, name: str | Path, of_folder: Callable[[Path], str] = lambda _: "give a file in it") -> Path:
        """A bare name is a shipped file, else a file here; anything with a slash or an ending is a path.

        Args:
            of_folder: what to do instead of naming this folder, for the message.

        Raises:
            ConfigError: there is no such file; the shipped ones are listed, or it is a folder.
        """
        is_bare = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
        shipped = [folder / f"{name}{self.suffix}" for folder in self.folders] if is_bare else []
        for path in (*shipped, Path(name)):
            if path.is_file():
                return path
        if Path(name).is_dir():
            raise ConfigError(f"{self.kind} '{name}': is a folder; {of_folder(Path(name))}")
        names = self.names()
        close = difflib.get_close_matches(Path(name).stem, names, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise ConfigError(
            f"{self.kind} '{name}' is not there. {hint}{self.heading}: {', '.join(names)}; or give a file's path"
        )
