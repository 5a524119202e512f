"""From entry points to plugins: discovery at run time, and typed look-ups by name.

What an entry point of a group such as ``omniq.storages`` names is imported when it is asked for. One of the group
``omniq`` may bring anything, and listen to events: it is loaded at once, by itself. One that fails is reported and
harms no other. A name that two distributions claim is an error where that name is asked for; the environment
variable ``OMNIQ_PLUGINS`` leaves plugins out. Nothing here is loaded on import of ``omniq``.
"""

from __future__ import annotations

import difflib
import itertools
import os
import platform
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping
from importlib import import_module
from inspect import isabstract
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, cast

import pluggy
from attrs import evolve, field, frozen

from omniq import hookspecs
from omniq._hook_calls import Around, Foreign, calling, foreign, surrounding
from omniq.errors import ConfigurationError, PluginConflict, UnknownPlugin, UnknownScheme
from omniq.retry import RetryPolicy
from omniq.schedule import Trigger
from omniq.serialization import Serializer
from omniq.storage import Storage, StorageConfig, StorageFactory
from omniq.storage.escaping import get_logger
from omniq.storage.urls import redact_all

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["COMMANDS", "Plugin", "Plugins", "default_plugins"]

GROUP = "omniq"
"""The group of entry points whose modules have hooks."""
ENVIRONMENT = "OMNIQ_PLUGINS"
_log = get_logger("omniq.plugins")

# Which extra of omniq-core brings a scheme, so that an unknown one can be answered with the command to type.
_EXTRAS = {
    "memory": "local",
    "sqlite": "local",
    "file": "local",
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "postgresql": "postgres",
    "postgres": "postgres",
    "nats": "nats",
    "tls": "nats",
    "ws": "nats",
    "wss": "nats",
}

_KINDS = {
    "omniq_storages": "storage",
    "omniq_serializers": "serializer",
    "omniq_retry_policies": "retry policy",
    "omniq_triggers": "trigger",
    "omniq_commands": "command",
}
COMMANDS = {
    "worker": ("omniq.cli.worker", "run tasks until told to stop"),
    "enqueue": ("omniq.cli.enqueue", "hand over one task"),
    "stats": ("omniq.cli.stats", "show every queue in numbers"),
    "tasks": ("omniq.cli.tasks", "list, show, cancel, retry and delete tasks"),
    "queues": ("omniq.cli.queues", "list, pause, resume and purge queues"),
    "flows": ("omniq.cli.flows", "list, show, cancel and retry flows"),
    "limits": ("omniq.cli.limits", "list, set and delete limits"),
    "workers": ("omniq.cli.workers", "show which workers are alive"),
    "dashboard": ("omniq.dashboard.command", "show what a store holds and does, in a browser"),
    "exporter": ("omniq.cli.exporter", "serve the numbers of a store over HTTP"),
    "functions": ("omniq.cli.functions", "show which tasks an application declares"),
    "schedules": ("omniq.cli.schedules", "list, show, pause, resume, trigger and delete schedules"),
    "doctor": ("omniq.cli.doctor", "check a store for problems"),
    "export": ("omniq.cli.exporting", "write all that a store holds, as lines of JSON"),
    "import": ("omniq.cli.importing", "store what omniq export wrote"),
    "migrate": ("omniq.cli.migrate", "bring a store's schema up to date"),
    "plugins": ("omniq.cli.plugins", "show which plugins are installed"),
    "demo": ("omniq.cli.demo.command", "see two workers do real work, and one of them killed"),
}
"""Those of ``omniq``: name → module and summary."""
_GROUPS = {hook.replace("_", ".", 1): hook for hook in _KINDS if hook != "omniq_commands"}
"""Groups of entry points that are things themselves, such as ``omniq.storages``: the hook that would name them, too."""


@frozen(kw_only=True)
class Plugin:
    """One plugin that was found, and what it brings."""

    name: str
    """The entry point's name."""
    distribution: str
    version: str
    provides: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """Kind (``storage``, ``serializer``, …) → names."""
    problem: str | None = None
    """Why it cannot be used; None if it can."""
    left_out: bool = False
    """Whether ``OMNIQ_PLUGINS`` leaves it out."""
    seconds: float = field(default=0.0, eq=False)
    """How long loading it took."""


@frozen
class Claim:
    """One distribution's claim of a name."""

    distribution: str
    thing: Any
    """What a plugin's hook returned for it."""


class _Choice:
    """Which plugins ``OMNIQ_PLUGINS`` leaves out: all but those that it names, or those that it names behind a hyphen.

    :param text: names of distributions and of entry points, separated by commas.
    """

    def __init__(self, text: str) -> None:
        names = [name.strip() for name in text.split(",") if name.strip()]
        self._without = {_normalized(name[1:]) for name in names if name.startswith("-")}
        self._only = {_normalized(name) for name in names if not name.startswith("-")}

    def leaves_out(self, *names: str) -> bool:
        called = set(map(_normalized, names))
        return bool(called & self._without) or (bool(self._only) and not called & self._only)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


class Plugins:
    """The plugins of one application.

    :param discover: whether to load the installed entry points of group ``omniq``.
    """

    def __init__(self, *, discover: bool = True) -> None:
        self._manager = _manager()
        self._claims: dict[str, dict[str, list[Claim]]] = {hook: {} for hook in _KINDS}
        self._loaded: dict[tuple[str, str], Any] = {}
        self._found: list[Plugin] = []
        self.around_task: Around | None = None
        """Enters the hooks ``omniq_around_task``; None where there are none."""
        self.around_enqueue: Around | None = None
        """The same of ``omniq_around_enqueue``."""
        self.by_hand: list[tuple[str, object]] = []
        """The names and objects that :meth:`register` and :meth:`extended` were given."""
        self._register(_builtin, name="omniq", distribution="omniq-core", version=_version())
        if discover:
            self._discover()

    def register(
        self, plugin: object, *, name: str, distribution: str | None = None, version: str = "", seconds: float = 0.0
    ) -> None:
        """Add a plugin that is not installed as an entry point, such as an application's own event hooks.

        :param plugin: a module or object whose functions carry ``@omniq.hookimpl``.
        :param name: how to call it in messages.
        :param distribution: the distribution that brings it, for messages.
        :param version: the version of that distribution.
        :param seconds: how long it took to load.
        :raises ConfigurationError: if one of its hooks does not exist, or it is registered already.
        """
        self._register(plugin, name=name, distribution=distribution or name, version=version, seconds=seconds)
        self.by_hand.append((name, plugin))

    def extended(self, plugins: Iterable[object]) -> Plugins:
        """Return these plugins with some objects beside them, which are known to the result alone.

        :param plugins: modules, instances or classes whose functions carry ``@omniq.hookimpl``; of a class an instance
            is made, without arguments.
        :raises TypeError: if one can be no plugin, such as a string.
        :raises ConfigurationError: as for :meth:`register`; if one has no hook; if no instance can be made of a class.
        """
        if isinstance(plugins, str | bytes | ModuleType) or not isinstance(plugins, Iterable):
            raise TypeError(f"plugins must be a list of plugin objects, not {plugins!r}; write plugins=[…]")
        result = self._copied()
        for given in plugins:
            name = _name_of(given, [name for name, _ in result.by_hand])
            plugin = _instance(given, name)
            result.register(plugin, name=name)
            if not result._manager.get_hookcallers(plugin):
                raise ConfigurationError(
                    f"plugin {name!r} has no hook: none of its functions is named as one and carries @omniq.hookimpl"
                )
        return result

    def _copied(self) -> Plugins:
        copy = Plugins.__new__(Plugins)
        copy._manager = _manager()
        for label, plugin in self._manager.list_name_plugin():
            copy._manager.register(plugin, label)
        copy._claims = {
            hook: {name: list(claims) for name, claims in named.items()} for hook, named in self._claims.items()
        }
        copy._loaded = dict(self._loaded)
        copy._found = list(self._found)
        copy.by_hand = list(self.by_hand)
        copy.around_task, copy.around_enqueue = self.around_task, self.around_enqueue
        return copy

    def _register(self, plugin: object, *, name: str, distribution: str, version: str, seconds: float = 0.0) -> None:
        label = f"{distribution}:{name}"
        try:
            self._manager.register(plugin, label)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.get_plugin(label) is plugin:
                self._manager.unregister(plugin)
            raise ConfigurationError(f"plugin {name!r} of {distribution}: {error}") from error
        began = time.perf_counter()
        try:
            with foreign():
                claims = self._ask(plugin)
        except Foreign as raised:
            self._manager.unregister(plugin)
            raise ConfigurationError(f"plugin {name!r} of {distribution}: {raised}") from raised.__cause__
        seconds += time.perf_counter() - began
        for hook, things in claims.items():
            for claimed, thing in things.items():
                self._claims[hook].setdefault(claimed, []).append(Claim(distribution, thing))
        provides = {_KINDS[hook]: tuple(sorted(things)) for hook, things in claims.items()}
        self._found.append(
            Plugin(name=name, distribution=distribution, version=version, provides=provides, seconds=seconds)
        )
        self.around_task = surrounding(self._manager.hook.omniq_around_task)
        self.around_enqueue = surrounding(self._manager.hook.omniq_around_enqueue)

    def _ask(self, plugin: object) -> dict[str, dict[str, Any]]:
        claims: dict[str, dict[str, Any]] = {}
        for hook in _KINDS:
            caller = getattr(self._manager.hook, hook)
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    claims[hook] = dict(implementation.function())
        return claims

    def _discover(self) -> None:
        from importlib.metadata import entry_points  # a tenth of the time that importing omniq takes

        choice = _Choice(os.environ.get(ENVIRONMENT, ""))
        found = entry_points()
        chosen = [one for group in (GROUP, *_GROUPS) for one in found.select(group=group)]
        for entry_point in sorted(chosen, key=lambda one: (one.dist.name if one.dist else "", one.group, one.name)):
            about = Plugin(
                name=entry_point.name,
                distribution=entry_point.dist.name if entry_point.dist else "an unknown distribution",
                version=entry_point.dist.version if entry_point.dist else "",
            )
            if choice.leaves_out(about.distribution, about.name):
                self._found.append(evolve(about, left_out=True))
            elif entry_point.group == GROUP:
                self._load(entry_point, about)
            else:
                self._declare(entry_point, about)

    def _declare(self, entry_point: EntryPoint, about: Plugin) -> None:
        hook = _GROUPS[entry_point.group]
        self._claims[hook].setdefault(about.name, []).append(Claim(about.distribution, entry_point.value))
        self._found.append(evolve(about, provides={_KINDS[hook]: (about.name,)}))

    def _load(self, entry_point: EntryPoint, about: Plugin) -> None:
        began = time.perf_counter()
        try:
            with foreign():
                plugin = entry_point.load()
            seconds = time.perf_counter() - began
            if self._manager.is_registered(plugin):
                return  # a distribution that names one module twice brings it once
            self._register(
                plugin, name=about.name, distribution=about.distribution, version=about.version, seconds=seconds
            )
        except (Foreign, ConfigurationError) as error:
            # Whatever a plugin raises on import must not keep the others from working.
            _log.warning("plugin %r of %s cannot be used: %s", about.name, about.distribution, error)
            self._found.append(evolve(about, problem=str(error), seconds=time.perf_counter() - began))

    @property
    def found(self) -> tuple[Plugin, ...]:
        """Every plugin, the broken ones too, in the order of loading."""
        return tuple(self._found)

    @property
    def commands(self) -> list[str]:
        """The names of all commands of ``omniq``, our own first."""
        return [*self._claims["omniq_commands"]]

    @property
    def conflicts(self) -> tuple[str, ...]:
        """One sentence for each name that two distributions claim."""
        return tuple(
            _conflict(_KINDS[hook], name, claims)
            for hook, names in self._claims.items()
            for name, claims in sorted(names.items())
            if len(claims) > 1
        )

    def _names(self, hook: str) -> list[str]:
        return sorted(self._claims[hook])

    def _get(self, hook: str, name: str) -> Any:
        try:
            return self._loaded[hook, name]
        except KeyError:
            pass
        claim = self._claim(hook, name)
        is_command = hook == "omniq_commands"
        thing = claim.thing[0] if is_command else claim.thing
        if isinstance(thing, str):
            module, _, attribute = thing.partition(":")
            try:
                with foreign():
                    if not (module and attribute) and not is_command:
                        raise ValueError("write module:attribute, such as 'acme_queue.storage:AcmeStorage'")
                    found = import_module(module)
                    thing = getattr(found, attribute) if attribute else found
            except Foreign as raised:
                raise ConfigurationError(
                    f"{_KINDS[hook]} {name!r} of {claim.distribution} cannot be loaded from {thing!r}: {raised}"
                ) from raised.__cause__
        self._loaded[hook, name] = thing
        return thing

    def _claim(self, hook: str, name: str) -> Claim:
        """Return the one claim of a name.

        :raises KeyError: if there is none.
        :raises PluginConflict: if there are several.
        """
        claims = self._claims[hook].get(name, [])
        if not claims:
            raise KeyError(name)
        if len(claims) > 1:
            raise PluginConflict(_conflict(_KINDS[hook], name, claims))
        return claims[0]

    def _get_or_unknown(self, hook: str, name: str, what: str) -> Any:
        try:
            return self._get(hook, name)
        except KeyError:
            known = ", ".join(self._names(hook)) or "none"
            raise UnknownPlugin(f"no {what} is called {name!r}; installed: {known}") from None

    def storage_factory(self, config: StorageConfig) -> StorageFactory:
        """Return what makes the storages of a URL's scheme.

        :param config: the URL with its options.
        :raises UnknownScheme: if no plugin opens that scheme; the message names what to install.
        :raises ConfigurationError: if its plugin cannot be used.
        """
        try:
            return cast("StorageFactory", self._get("omniq_storages", config.scheme))
        except KeyError:
            raise UnknownScheme(self._unknown_scheme(config)) from None

    def open_storage(self, config: StorageConfig) -> Storage:
        """Make the unopened storage that a URL names.

        :param config: the URL with its options.
        :return: a storage that has done no I/O yet.
        :raises UnknownScheme: if no plugin opens that scheme; the message names what to install.
        :raises ConfigurationError: if its plugin or its options cannot be used.
        """
        factory = self.storage_factory(config)
        distribution = self._claims["omniq_storages"][config.scheme][0].distribution
        whose = f"storage {config.scheme!r} of {distribution}"
        if not callable(factory):
            raise ConfigurationError(
                f"{whose} is of type {type(factory).__name__}; name a class or function that makes one"
            )
        if isabstract(factory):
            raise _lacking(whose, getattr(factory, "__abstractmethods__", ()))
        try:
            storage = factory(config)
            missing = [name for name in Storage.__abstractmethods__ if not callable(getattr(storage, name, None))]
            if len(missing) == len(Storage.__abstractmethods__):
                raise ConfigurationError(
                    f"{whose}: {getattr(factory, '__qualname__', factory)} returned a {type(storage).__name__}, "
                    "which is no omniq.storage.Storage"
                )
            if missing:
                raise _lacking(whose, missing)
            return storage
        except ConfigurationError:
            raise
        except ValueError as error:
            # Text from elsewhere, which may show the URL as it was given.
            raise ConfigurationError(redact_all(str(error))) from None

    def versions(self, scheme: str) -> dict[str, str]:
        """Return the versions of ``omniq-core``, of the distribution that opens a scheme, and of ``python``.

        :param scheme: of a storage URL; of one that nothing opens there is no version.
        """
        claims = self._claims["omniq_storages"].get(scheme, [])
        wanted = {"omniq-core", *(claim.distribution for claim in claims)}
        found = {plugin.distribution: plugin.version for plugin in self._found if plugin.distribution in wanted}
        return {**found, "python": platform.python_version()}

    def _unknown_scheme(self, config: StorageConfig) -> str:
        extra = _EXTRAS.get(config.scheme)
        if extra is not None:
            text = (
                f"no installed storage opens {config.scheme}:// ({config.redacted}); "
                f"type: pip install 'omniq-core[{extra}]'"
            )
        else:
            installed = ", ".join(f"{name}://" for name in self._names("omniq_storages")) or "none"
            text = f"no storage opens {config.scheme}:// ({config.redacted}){self._close_scheme(config.scheme)}"
            text += f"; installed: {installed}"
            text += "; if another distribution opens it, install that here and look with: omniq plugins"
        broken = [plugin for plugin in self._found if plugin.problem]
        if broken:
            text += "; these plugins are broken: " + ", ".join(f"{p.name!r} of {p.distribution}" for p in broken)
        left_out = [plugin for plugin in self._found if plugin.left_out]
        if left_out:
            names = ", ".join(f"{p.name!r} of {p.distribution}" for p in left_out)
            text += f"; {ENVIRONMENT} leaves these plugins out: {names}"
        return text

    def _close_scheme(self, scheme: str) -> str:
        close = difflib.get_close_matches(scheme, [*self._names("omniq_storages"), *_EXTRAS], n=1)
        return f"; did you mean {close[0]}://?" if close else ""

    def serializer(self, name: str) -> Serializer:
        """Return a serializer by name.

        :param name: such as ``json``.
        :raises UnknownPlugin: if there is none.
        """
        return cast("Serializer", self._get_or_unknown("omniq_serializers", name, "serializer"))

    def retry_policy(self, kind: str) -> type[RetryPolicy]:
        """Return a retry policy's class by kind.

        :param kind: such as ``exponential``.
        :raises UnknownPlugin: if there is none.
        """
        return cast("type[RetryPolicy]", self._get_or_unknown("omniq_retry_policies", kind, "retry policy"))

    def trigger(self, kind: str) -> type[Trigger]:
        """Return a trigger's class by kind.

        :param kind: such as ``cron``.
        :raises UnknownPlugin: if there is none.
        """
        return cast("type[Trigger]", self._get_or_unknown("omniq_triggers", kind, "trigger"))

    def command_summary(self, name: str) -> str:
        """Return what a command of ``omniq`` does, in a few words.

        :param name: one of :attr:`commands`.
        :raises PluginConflict: if two distributions claim its name.
        :raises ConfigurationError: if it is not declared as the hook asks.
        """
        claim = self._claim("omniq_commands", name)
        match claim.thing:
            case (_, str() as summary):
                return summary
        raise ConfigurationError(
            f"command {name!r} of {claim.distribution}: omniq_commands must map it to a pair of what runs it, or "
            f'"module:attribute", and a summary, not to {claim.thing!r}'
        )

    def command(self, name: str) -> Any:
        """Return a command of ``omniq``: what has ``configure(parser)`` and ``run(options)``; None if there is none.

        :param name: such as ``worker``.
        :raises PluginConflict: if two distributions claim its name.
        :raises ConfigurationError: if it cannot be used.
        """
        if name not in self._claims["omniq_commands"]:
            return None
        self.command_summary(name)
        command = self._get("omniq_commands", name)
        missing = [method for method in ("configure", "run") if not callable(getattr(command, method, None))]
        if missing:
            distribution = self._claim("omniq_commands", name).distribution
            what = command.__name__ if isinstance(command, ModuleType) else repr(command)
            raise ConfigurationError(f"command {name!r} of {distribution}: {what} has no {' and no '.join(missing)}")
        return command

    def event(self, hook: str) -> Callable[..., None] | None:
        """Return a function that calls every plugin's hook for an event, or None where no plugin has one.

        A hook call costs microseconds even with no listener, so callers keep the answer and skip the call on None.

        :param hook: one of ``hookspecs.EVENT_HOOKS``.
        """
        return calling(getattr(self._manager.hook, hook))


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("omniq")
    manager.add_hookspecs(hookspecs)
    return manager


def _name_of(plugin: object, taken: Container[str]) -> str:
    """Return what a plugin object is called in messages: by its module or class, and a number if there are several."""
    kind = plugin if isinstance(plugin, type) else type(plugin)
    name = plugin.__name__ if isinstance(plugin, ModuleType) else f"{kind.__module__}.{kind.__qualname__}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


def _instance(plugin: object, name: str) -> object:
    """Return a plugin object itself, or an instance of it if it is a class."""
    if plugin is None or isinstance(plugin, str | bytes | FunctionType):
        raise TypeError(f"{plugin!r} is no plugin: give the module, instance or class itself that has the hooks")
    if not isinstance(plugin, type):
        return plugin
    try:
        with foreign():
            return plugin()
    except Foreign as raised:
        raise ConfigurationError(
            f"plugin {name!r} is a class, and none can be made of it without arguments: {raised}; give an instance"
        ) from raised.__cause__


def _conflict(kind: str, name: str, claims: list[Claim]) -> str:
    whose = [claim.distribution for claim in claims]
    foreign = next((one for one in whose if not one.startswith("omniq-")), whose[-1])
    return (
        f"{kind} {name!r} is claimed by {' and '.join(whose)}; uninstall one of them, or leave one out: set the "
        f"environment variable {ENVIRONMENT}=-{foreign}"
    )


def _lacking(whose: str, methods: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(f"{whose} lacks methods of omniq.storage.Storage: {', '.join(sorted(methods))}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("omniq-core")
    except PackageNotFoundError:
        return ""


class _Builtin:
    """What omniq-core itself brings, through the same hooks as other plugins."""

    @hookspecs.hookimpl
    def omniq_serializers(self) -> Mapping[str, Serializer | str]:
        return {
            "json": "omniq.serialization.json:serializer",
            "cloudpickle": "omniq.serialization.cloudpickle:serializer",
        }

    @hookspecs.hookimpl
    def omniq_retry_policies(self) -> Mapping[str, type[RetryPolicy] | str]:
        from omniq.retry import Exponential, Fixed, Linear

        return {policy.kind: policy for policy in (Exponential, Fixed, Linear)}

    @hookspecs.hookimpl
    def omniq_triggers(self) -> Mapping[str, type[Trigger] | str]:
        return {kind: f"omniq.triggers:{kind.title()}" for kind in ("at", "cron", "every")}

    @hookspecs.hookimpl
    def omniq_commands(self) -> Mapping[str, tuple[object, str]]:
        return COMMANDS


_builtin = _Builtin()
_default: Plugins | None = None


def default_plugins() -> Plugins:
    """Return the plugins that are installed, discovered at the first call in a process."""
    global _default
    if _default is None:
        _default = Plugins()
    return _default
