"""Full text search over the records' fields: an FTS5 index in the server's own database.

`record_texts` has a row for each string of a record's fields, and `record_words` is the index over it. Triggers keep both in
step with the table of records, so that nobody who writes a record needs to know of them.
"""

import re
import sqlite3
import unicodedata

from argilla_server.models import Record
from argilla_server.search_engine import TextQuery
from sqlalchemy import ColumnElement, Text, and_, column, false, select, table, type_coerce

# No role names of a chat, whose messages are the only objects in an array, and no pictures, which a field may hold whole.
_STRINGS = """
    SELECT {record}.id, field.key, string.atom
    FROM json_each({record}.fields) AS field, json_tree({record}.fields, field.fullkey) AS string
    WHERE string.type = 'text' AND NOT (field.type = 'array' AND string.key = 'role')
      AND NOT EXISTS (SELECT 1 FROM fields WHERE dataset_id = {record}.dataset_id AND name = field.key
                      AND json_extract(settings, '$.type') = 'image')
"""
_FILL = "INSERT INTO record_texts (record_id, field, text)"
_TABLES = (
    "CREATE TABLE record_texts (id INTEGER PRIMARY KEY, record_id TEXT NOT NULL, field TEXT NOT NULL, text TEXT NOT NULL)",
    "CREATE INDEX record_texts_record_id ON record_texts (record_id)",
    """CREATE VIRTUAL TABLE record_words USING fts5(
        text, content = 'record_texts', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2')""",
    """CREATE TRIGGER record_texts_insert AFTER INSERT ON record_texts BEGIN
        INSERT INTO record_words (rowid, text) VALUES (new.id, new.text); END""",
    """CREATE TRIGGER record_texts_delete AFTER DELETE ON record_texts BEGIN
        INSERT INTO record_words (record_words, rowid, text) VALUES ('delete', old.id, old.text); END""",
    f"""CREATE TRIGGER records_text_insert AFTER INSERT ON records BEGIN
        {_FILL} {_STRINGS.format(record="new")}; END""",
    f"""CREATE TRIGGER records_text_update AFTER UPDATE OF fields ON records WHEN old.fields IS NOT new.fields BEGIN
        DELETE FROM record_texts WHERE record_id = old.id;
        {_FILL} {_STRINGS.format(record="new")}; END""",
    "CREATE TRIGGER records_text_delete AFTER DELETE ON records BEGIN DELETE FROM record_texts WHERE record_id = old.id; END",
    f"{_FILL} {_STRINGS.format(record='records').replace('FROM', 'FROM records,', 1)}",
)
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Scripts that put no space between words, or before particles: Thai, Lao, Burmese, Khmer, Japanese, Chinese, Korean."""
_words = table("record_words", column("rowid"), column("record_words"))
_texts = table("record_texts", column("id"), column("record_id"), column("field"), column("text"))


def index_text(connection: sqlite3.Connection) -> None:
    """Make the index, with what the records hold already, where it is not there: whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'record_texts'").fetchone():
        for statement in _TABLES:
            connection.execute(statement)
    connection.execute("COMMIT")


def has_text(query: TextQuery | str) -> ColumnElement[bool]:
    """That every word of the query occurs in the record, or in the field that the query names. No character is an operator."""
    query = TextQuery(q=query) if isinstance(query, str) else query
    words = query.q.replace("\0", " ").split()
    return and_(*[_has(word, query.field) for word in words]) if words else false()


def _has(word: str, field: str | None) -> ColumnElement[bool]:
    """A word is found in any case, with or without its accents. It is found within a longer one only where the index, which
    divides text at whatever is no letter or digit, cannot know it for a word."""
    if _UNSPACED.search(word) or not any(unicodedata.category(letter)[0] in "LN" for letter in word):
        found: ColumnElement[bool] = _texts.c.text.contains(word, autoescape=True)
    else:
        phrase = '"' + word.replace('"', '""') + '"'
        found = _texts.c.id.in_(select(_words.c.rowid).where(_words.c.record_words.op("MATCH")(phrase)))
    records = select(_texts.c.record_id).where(found)
    if field is not None:
        records = records.where(_texts.c.field == field)
    return type_coerce(Record.id, Text).in_(records)
