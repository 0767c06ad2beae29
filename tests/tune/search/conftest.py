"""A database for studies."""

import optuna
import pytest


@pytest.fixture
def sqlite(tmp_path):
    """Makes storages on one file, and closes their connections in the end."""
    opened = []

    def make():
        opened.append(optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db"))
        return opened[-1]

    yield make
    for storage in opened:
        storage.remove_session()
        storage.engine.dispose()
