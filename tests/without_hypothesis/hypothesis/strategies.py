"""Strategies of which no example is ever drawn."""


class Strategy:
    def __getattr__(self, _):
        return lambda *_, **__: self


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "composite":
        return lambda _: lambda *_, **__: Strategy()
    return lambda *_, **__: Strategy()
