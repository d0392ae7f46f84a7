"""A tree of messages, one a row, becomes conversations: from each beginning along the best answers to the end.

Datasets of volunteers (OASST1) hold several answers to each message, ranked by others. Only the best thread of a tree is taken: the
others share most of their text with it. A thread that ends with a question loses it. A whole file is held in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from fledge.corpus.document import Conversation
from fledge.corpus.rejects import Malformed
from fledge.corpus.sources.near_duplicates import text_group
from fledge.corpus.sources.records import Node, Records, conversation


def threads(records: Records, nodes: Iterable[Node]) -> Iterator[Conversation]:
    """A conversation for each message without a parent, in their order, if it has an answer and the wanted language."""
    answers: defaultdict[str | None, list[Node]] = defaultdict(list)
    for node in nodes:
        answers[node.parent].append(node)
    for root in answers[None]:
        if records.language is not None and root.language != records.language:
            continue
        messages = [node.message for node in _best_thread(root, answers)]
        if messages[-1].role == "user":
            messages.pop()
        try:
            turns = tuple(conversation(messages))
        except Malformed:
            continue
        group = text_group("\n".join(message.content for message in turns))
        yield Conversation(turns, f"{records.source}:{root.id}", records.source, group)


def _best_thread(root: Node, answers: dict[str | None, list[Node]]) -> Iterator[Node]:
    seen: set[str] = set()
    node: Node | None = root
    while node is not None and node.id not in seen:
        yield node
        seen.add(node.id)
        node = min(answers.get(node.id, ()), key=lambda answer: answer.rank, default=None)
