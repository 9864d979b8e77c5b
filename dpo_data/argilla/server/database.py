"""The server's SQLite database: made without its command line, which today's click breaks, and opened to text search."""

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from argilla_server.contexts import accounts
from argilla_server.database import ALEMBIC_CONFIG_FILE, AsyncSessionLocal
from argilla_server.models import User, UserRole
from server.text import index_text


def migrate() -> None:
    """Make the tables."""
    command.upgrade(Config(ALEMBIC_CONFIG_FILE), "head")


async def create_owner(username: str, password: str, api_key: str) -> None:
    async with AsyncSessionLocal() as db:
        await User.create(
            db,
            first_name=username,
            username=username,
            role=UserRole.owner,
            api_key=api_key,
            password_hash=accounts.hash_password(password),
        )


def open_to_search(path: Path) -> None:
    """Let readers go on beside a writer (WAL), and index the records' text."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    index_text(connection)
    connection.close()
