"""`add` killed before every write, fsync and rename leaves the old state or the new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import killing
import pytest
import regkit

from adapterhub import api
from adapterhub.registry import Registry

HERE = Path(__file__).parent


def state(registry: Registry) -> tuple[Any, ...]:
    """What users see: names, tags, versions, cards; from the logs and from the index."""
    rows = registry.list(order="name")
    logs = [registry.show(name) for name in registry.store.names()]
    seen = [(s["name"], s["tags"], [v["digest"] for v in s["versions"]], s["card"]) for s in logs]
    return seen, [(row.name, row.digest, dict(row.tags), row.licence) for row in rows]


@pytest.mark.slow
def test_add_killed_before_every_step(tmp_path: Path) -> None:
    base = regkit.save_base(tmp_path / "minibert")
    adapter = regkit.save_adapter(tmp_path / "adapter")
    template = tmp_path / "template"
    with api.open(template) as registry:
        registry.add(adapter, name="a", tag="prod")
        registry.add(regkit.save_adapter(tmp_path / "o", regkit.lora(9)), name="other")
        old = state(registry)
    regkit.save_adapter(adapter, regkit.lora(5))
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n")
    folder = tmp_path / "homes"
    killed = killing.drive(HERE / "add_driver.py", template, folder, adapter, base)
    assert killed >= 15
    with api.open(folder / str(killed + 1)) as registry:
        new = state(registry)
    assert new != old
    states = []
    for number in range(1, killed + 1):
        with api.open(folder / str(number)) as registry:
            states.append(state(registry))
            assert registry.verify()["problems"] == []
            assert [record["name"] for record in registry.base.list()] in ([], ["minibert"])
            again = registry.add(adapter, name="a", tag="prod", base=base)
            assert again.status == ("unchanged" if states[-1] == new else "added")
            assert state(registry) == new
            assert registry.verify()["problems"] == []
    assert all(each in (old, new) for each in states)
    assert states[0] == old
    assert states[-1] == new
    turn = states.index(new)
    assert states == [old] * turn + [new] * (killed - turn)
