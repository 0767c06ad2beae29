"""The API pages have every public name and explain each type; docstrings are as the pages want."""

import ast
import builtins
import functools
import inspect
import re
import sys
import textwrap
from pathlib import Path

import pytest

import rmsprop_jax

DOCS = Path(__file__).parents[2] / "docs"
INDEX = (DOCS / "pages" / "api.md").read_text("utf-8")
PAGES = {p.stem: p.read_text("utf-8") for p in sorted((DOCS / "pages" / "api").glob("*.md"))}
ENTRIES = {  # for each name its page and the options there
    name: (page, options)
    for page, text in PAGES.items()
    for name, options in re.findall(r"^::: rmsprop_jax\.(\S+)\n((?: {4}.*\n)*)", text, re.M)
}
ROOMS = (rmsprop_jax.presets, rmsprop_jax.search, rmsprop_jax.plots, rmsprop_jax.loggers)
PUBLIC = {name: getattr(rmsprop_jax, name) for name in rmsprop_jax.__all__ if name[:2] != "__"}


def in_room(room):
    """Of each public name of a module its docstring, an assignment's too; a package's names are in
    its files."""
    files = [Path(inspect.getfile(room))]
    if files[0].name == "__init__.py":
        files = sorted(files[0].parent.glob("*.py"))
    bodies = [ast.parse(file.read_text("utf-8")).body for file in files]
    pairs = [pair for body in bodies for pair in zip(body, [*body[1:], None], strict=True)]
    for node, after in pairs:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name, doc = node.name, ast.get_docstring(node)
        elif isinstance(node, ast.Assign) and is_docstring(after):
            name, doc = node.targets[0].id, inspect.cleandoc(after.value.value)
        else:
            continue
        if name in room.__all__:
            yield name, doc


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def test_the_api_pages_have_every_public_name_once_and_no_other():
    shown = re.findall(r"^::: rmsprop_jax\.(\S+)$", "\n".join(PAGES.values()), re.M)
    assert sorted(shown) == sorted(PUBLIC)


def test_completion_offers_public_names_only():
    for room in ROOMS:
        assert dir(room) == sorted(room.__all__)


def test_the_api_index_says_of_each_name_what_its_docstring_says_first():
    docs = {name: inspect.getdoc(value) for name, value in PUBLIC.items()}
    for room in ROOMS:
        short = room.__name__.split(".")[1]
        docs |= {f"{short}.{name}": doc for name, doc in in_room(room)}
    wanted = [
        f"| [`{name}`](api/{ENTRIES[name.split('.')[0]][0]}.md#rmsprop_jax.{name}) "
        f"| {' '.join(doc.split(chr(10) * 2)[0].split())} |"
        for name, doc in docs.items()
    ]
    assert sorted(re.findall(r"^\| \[.*$", INDEX, re.M)) == sorted(wanted)


def signatures(name, value):
    """The functions and fields, as syntax, whose types an entry shows."""
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    if isinstance(node, ast.FunctionDef):
        return [node]
    _, options = ENTRIES[name.split(".")[0]]
    hidden = set(re.findall(r'"!\^(\w+)\$"', options))
    if "merge_init_into_class: false" in options:
        hidden.add("__init__")
    shown = [x for x in node.body if isinstance(x, ast.FunctionDef) and x.name not in hidden]
    fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
    return fields + [x for x in shown if x.name[0] != "_" or x.name == "__init__"]


def annotations(node):
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    a = node.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    return [x for x in (*(a.annotation for a in arguments if a), node.returns) if x]


@functools.cache
def scope(module):
    """For the names that a module imports their full ones, and what it sets private ones to."""
    tree, full = ast.parse(inspect.getsource(module)), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {x.asname or x.name: x.name for x in node.names}
        elif isinstance(node, ast.ImportFrom):
            full |= {x.asname or x.name: f"{node.module}.{x.name}" for x in node.names}
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return full, {ast.unparse(node.targets[0]): node.value for node in assigned}


def full_names(node, module):
    """The names of an annotation, each with the module that it is of."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if not isinstance(node, ast.Name | ast.Attribute):
        return set().union(*(full_names(x, module) for x in ast.iter_child_nodes(node)))
    full, private = scope(module)
    first, dot, rest = ast.unparse(node).partition(".")
    if first[0] == "_":  # the pages show what it stands for
        return full_names(private[first], module)
    if hasattr(builtins, first):
        return set()
    return {full.get(first, f"{module.__name__}.{first}") + dot + rest}


def test_every_type_in_a_public_signature_has_an_entry_or_is_explained():
    """But for those of Python itself."""
    shown = [(name, x) for name, x in PUBLIC.items() if x not in ROOMS]
    shown += [
        (f"{room.__name__.split('.')[1]}.{name}", getattr(room, name))
        for room in ROOMS
        for name, _ in in_room(room)
    ]
    used = set()
    for name, value in shown:
        if inspect.isfunction(value) or inspect.isclass(value):
            module = sys.modules[value.__module__]
            for node in signatures(name, value):
                used |= set().union(*(full_names(one, module) for one in annotations(node)))
    has_entry = {f"{x.__module__}.{name}" for name, x in PUBLIC.items() if inspect.isclass(x)}
    of_python = {x for x in used if x.split(".")[0] in sys.stdlib_module_names}
    section = INDEX.split("## Types in signatures")[1]
    explained = re.findall(r'^\| <a id="(\S+)"></a>`(\S+)` \| .+ \|$', section, re.M)
    assert sorted(anchor for anchor, _ in explained) == sorted(used - of_python - has_entry)
    assert all(anchor.endswith(name.split(".")[-1]) for anchor, name in explained)


def public_functions():
    """Public functions, classes and methods, by name."""
    names = {n: x for room in (rmsprop_jax, *ROOMS) for n, x in vars(room).items() if n[0] != "_"}
    ours = [v for v in names.values() if getattr(v, "__module__", "").startswith("rmsprop_jax")]
    classes = [v for v in ours if isinstance(v, type)]
    methods = [getattr(v, name) for v in classes for name in vars(v) if name[0] != "_"]
    return {f.__qualname__: f for f in [*ours, *methods] if callable(f) and inspect.getdoc(f)}


FUNCTIONS = public_functions()
DESCRIBED = {name: f for name, f in FUNCTIONS.items() if "\nArgs:" in inspect.getdoc(f)}
RETURNING = {name: f for name, f in FUNCTIONS.items() if "\nReturns:" in inspect.getdoc(f)}


def section(function, title):
    doc = inspect.getdoc(function) + "\n"
    return re.search(rf"^{title}:\n((?:  .*\n|\n(?=  ))*)", doc, re.M)[1]


@pytest.mark.parametrize("function", DESCRIBED.values(), ids=DESCRIBED)
def test_docstrings_describe_each_argument_in_the_signatures_order(function):
    """As the API pages want it, where one heading for two arguments is set as none."""
    described = re.findall(r"^  [*]{0,2}(\w[^:\n]*):", section(function, "Args"), re.M)
    arguments = inspect.signature(function).parameters.values()
    by_place = inspect.Parameter.POSITIONAL_ONLY
    assert described == [a.name for a in arguments if a.kind != by_place and a.name != "self"]


def test_what_is_returned_is_one_text_on_the_api_pages():
    """Unless told, Griffe makes an entry of each line that is not indented further."""
    assert "returns_multiple_items: false" in (DOCS / "mkdocs.yml").read_text("utf-8")


@pytest.mark.parametrize("function", RETURNING.values(), ids=RETURNING)
def test_what_is_returned_does_not_begin_as_a_name(function):
    """`word:` and `(words):` would be set as the name and the type of what is returned."""
    assert not re.match(r"  \w*\s*(\(.+\))?:", section(function, "Returns"))


CLASSES = {name: x for name, x in PUBLIC.items() if inspect.isclass(x)}


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_describe_each_attribute(name):
    """After it, or in the class's own docstring: others are not on the API pages."""
    node = ast.parse(textwrap.dedent(inspect.getsource(CLASSES[name]))).body[0]
    fields = {
        one.target.id: is_docstring(after)
        for one, after in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(one, ast.AnnAssign)
    }
    fields |= {
        one.attr: False
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)
        if isinstance(one.value, ast.Name) and one.value.id == "self"
    }
    told = re.findall(r"^  (\w+):", inspect.getdoc(CLASSES[name]), re.M)
    assert [x for x, is_told in fields.items() if x[0] != "_" and not is_told | (x in told)] == []
