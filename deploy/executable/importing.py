"""In place of ``importlib``: a module is built in or frozen, and found by its name alone.

C calls what is here (Python/import.c): ``_install`` once, ``_find_and_load`` for a module that is
not in ``sys.modules``, ``_handle_fromlist`` for what is imported from a package. There are no
locks, since there is one thread, and nothing is looked for on disk.
"""

world = {}
"""What ``_install`` is given: ``sys`` and ``_imp``."""


class Spec:
    """All that ``_imp`` wants to know of a built-in module."""

    def __init__(self, name):  # noqa: ANN001, ANN204 - the interpreter has no typing yet
        self.name = name


def _install(sys, _imp):  # noqa: ANN001, ANN202
    world.update(sys=sys, imp=_imp)


def _find_and_load(name, import_):  # noqa: ANN001, ANN202
    modules, imp = world["sys"].modules, world["imp"]
    package, _, part = name.rpartition(".")
    if package and package not in modules:
        import_(package)
    if imp.is_builtin(name):
        modules[name] = module = imp.create_builtin(Spec(name))
        imp.exec_builtin(module)
    elif imp.is_frozen(name):
        modules[name] = module = type(imp)(name)
        if imp.is_frozen_package(name):
            module.__path__ = []
        exec(imp.get_frozen_object(name), module.__dict__)
    else:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = modules[name]  # a module may have put another in its own place
    if package:
        setattr(modules[package], part, module)
    return module


def _handle_fromlist(package, names, import_):  # noqa: ANN001, ANN202
    for name in names:
        if not hasattr(package, name):
            import_(f"{package.__name__}.{name}")
    return package
