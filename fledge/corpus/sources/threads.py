"""A tree of messages, one a row, becomes conversations: from each beginning along the best answers to the end.

Datasets of volunteers (OASST1) hold several answers to each message, ranked by others. Only the best thread of a tree is taken: the
others share most of their text with it. A thread that ends with a question loses it; one that is none, and a message whose parent is not
there, are rejects. A whole file is held in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from fledge.corpus.document import Conversation
from fledge.corpus.rejects import Malformed, Reject, Rejects
from fledge.corpus.sources.records import Node, Records, conversation, question_group


def threads(records: Records, file_name: str, nodes: Iterable[Node], rejects: Rejects) -> Iterator[Conversation]:
    """A conversation for each message without a parent, in their order, if it has an answer and the wanted language."""
    answers: defaultdict[str | None, list[Node]] = defaultdict(list)
    known: set[str | None] = {None}
    for node in nodes:
        answers[node.parent].append(node)
        known.add(node.id)
    for parent, orphans in answers.items():
        if parent not in known:
            for orphan in orphans:
                rejects.add(Reject(records.source, file_name, 0, 0, f"its parent is not there ({orphan.id})"))
    for root in answers[None]:
        if records.language is not None and root.language != records.language:
            continue
        messages = [node.message for node in _best_thread(root, answers)]
        if messages[-1].role == "user":
            messages.pop()
        try:
            turns = tuple(conversation(messages))
        except Malformed as error:
            rejects.add(Reject(records.source, file_name, 0, 0, f"{error} ({root.id})"))
            continue
        yield Conversation(turns, f"{records.source}:{root.id}", records.source, question_group(turns))


def _best_thread(root: Node, answers: dict[str | None, list[Node]]) -> Iterator[Node]:
    """From a message on, each time the best answer that another role gives, if there is one."""
    seen: set[str] = set()
    node: Node | None = root
    while node is not None and node.id not in seen:
        yield node
        seen.add(node.id)
        role = node.message.role
        node = min(answers.get(node.id, ()), key=lambda answer: (answer.message.role == role, answer.rank), default=None)
