"""What the site needs beside its pages: tutorials that are run, raw rows, and a check of what is public."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
KEPT = ROOT / ".cache" / "tutorials"  # what was rendered, under a hash of all that it came from


def rendered(scripts: list[Path]) -> list[Path]:
    """Run tutorials, each in a process of its own, and return the folders of their pages and pictures.

    One is run again where it, or anything in ``hem`` or ``configs``, has changed.
    """
    shared = [Path(__file__), *sorted(ROOT.glob("hem/**/*.py")), *sorted(ROOT.glob("configs/**/*.yaml"))]
    content = hashlib.sha256(os.environ.get("HEM_QUICK", "").encode())
    for path in shared:
        content.update(path.read_bytes())
    folders, words = [], []
    for script in scripts:
        own = content.copy()
        own.update(script.read_bytes())
        folders.append(KEPT / f"{script.stem}-{own.hexdigest()[:16]}")
        if not (folders[-1] / f"{script.stem}.md").is_file():
            words += [str(script), str(folders[-1])]
    if words:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "COLUMNS": "100"}
        done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise PluginError(f"a tutorial failed:\n{done.stderr[-3000:]}")
    return folders


def render(script: Path, folder: Path) -> None:
    """Run the cells of a py:percent script in turn; its text, code, output and figures become a page."""
    import jupytext
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    page, namespace, drawn = [], {"__name__": "__main__"}, 0
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        for cell in jupytext.read(script).cells:
            if cell.cell_type != "code":
                page.append(cell.source)
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(cell.source, str(script), "exec"), namespace)
            page.append(f"```python\n{cell.source}\n```")
            if said := printed.getvalue().rstrip().lstrip("\n"):
                page.append(f'```text title="prints"\n{said}\n```')
            for number in plt.get_fignums():
                drawn += 1
                name = f"{script.stem}_{drawn}.png"
                plt.figure(number).savefig(folder / name, dpi=120, bbox_inches="tight")
                page.append(f"![{plt.figure(number).get_label() or 'figure'}]({name})")
            plt.close("all")
    (folder / f"{script.stem}.md").write_text("\n\n".join(page) + "\n")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the rendered tutorials, their scripts, the examples, and the rows behind the results."""

    def add(path: Path, place: str) -> None:
        files.append(File.generated(config, place, abs_src_path=str(path)))

    scripts = sorted(TUTORIALS.glob("*.py"))
    for script, folder in zip(scripts, rendered(scripts), strict=True):
        for path in sorted(folder.iterdir()):
            add(path, f"tutorials/{path.name}")
        add(script, f"scripts/{script.name}")
    for path in sorted((ROOT / "benchmarks" / "results").iterdir()):
        add(path, f"rows/{path.name}")
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Let the raw rows that a page names be links to them."""
    depth = "../" * page.file.src_uri.count("/")
    rows = {Path(uri).name for uri in files.src_uris if uri.startswith("rows/")}
    return re.sub(
        r"`([\w{},]+\.(?:csv|jsonl))`",
        lambda found: f"[{found[0]}]({depth}rows/{found[1]})" if found[1] in rows else found[0],
        markdown,
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a build in which a public name has no entry: it has no docstring, or no page shows it.

    Raises:
        PluginError: With the names.
    """
    pages = [path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")]
    modules = sorted({name for text in pages for name in re.findall(r"^::: ([\w.]+)", text, flags=re.MULTILINE)})
    html = "".join(path.read_text() for path in Path(config.site_dir, "api").rglob("*.html"))
    missing = []
    for name in modules:
        if not isinstance(module := resolve_name(name), ModuleType):
            continue
        for key in getattr(module, "__all__", None) or _own(module):
            found = getattr(module, key)
            if (
                key.startswith("_")
                or isinstance(found, ModuleType)
                or not getattr(found, "__module__", name).startswith("hem")
            ):
                continue  # a module has a page of its own, and what is torch's has torch's
            places = {f"{name}.{key}", f"{getattr(found, '__module__', name)}.{key}"}
            if not any(f'id="{place}"' in html for place in places):
                missing.append(f"{name}.{key}")
    if missing:
        raise PluginError(f"public names without an entry in the reference: {', '.join(missing)}")


def _own(module: ModuleType) -> list[str]:
    """The public functions and classes of a module that has no ``__all__``."""
    return [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
    ]


if __name__ == "__main__":
    from hem.study import forkserver

    for name in forkserver.PRELOAD:  # takes seconds: done once, for each tutorial runs in a copy of this
        importlib.import_module(name)
    for script, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        copy = multiprocessing.get_context("fork").Process(target=render, args=(Path(script), Path(folder)))
        copy.start()
        copy.join()
        if copy.exitcode:
            sys.exit(f"{script} ended with code {copy.exitcode}")
