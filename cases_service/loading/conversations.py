"""What a load derives for conversations: a message's case, and an activity's visibility and message count.

A message's line names its activity but no case, and no line gives an activity's message count or says whether visitors
see it. All of that follows from the lines and the stored rows.
"""

from collections import Counter
from collections.abc import Iterable

from cases_service.loading.session import LoadSession
from cases_service.loading.statements import TABLES


class StagedConversations:
    """The staged activities and messages of one load. Call the methods in their order here.

    Only `find_counted` and `skip_left_behind` may be repeated, until the messages are written.
    """

    def __init__(self, session: LoadSession) -> None:
        self._execute = session.execute
        self._count = session.count
        self._has_contents = False

    def lock(self, organizations: Iterable[str]) -> None:
        """Lock the organizations' conversations that lines are about until the transaction ends."""
        for organization_id in organizations:
            self._execute("lock_conversations", organization_id=organization_id).fetchone()

    def prepare(self) -> None:
        """Read what is stored of them, once it can no longer change."""
        self._execute("create_staging_of_counts")
        self._execute("index_messages")
        self.find_counted()

    def find_counted(self) -> None:
        """Find the stored messages, and which activities count them."""
        self._execute("fill_counted")

    def skip_late(self) -> Counter[str]:
        """Exclude lines in cases and activities that were removed, and return how many of each organization.

        Those in cases that lines remove are left to `skip_taken_along`.
        """
        self._execute("find_late activities.case_id")
        self._execute("remember_late")
        late = self._count("skip_found_late activities")
        self._execute("find_late messages.activity_id")
        return late + self._count("skip_found_late messages")

    def skip_taken_along(self, *, unnamed: int) -> int:
        """Exclude lines in cases that lines remove, and return how many stored rows there have no line.

        If the row of such a line is stored in a case that stays, the line removes it.
        """
        self._execute("fill_cases_of_removed")
        messages = self._skip_messages(unnamed)
        self._has_contents = self._execute("remove_moved_activities").rowcount > 0
        return messages + self._skip("activity", unnamed)

    def skip_left_behind(self, *, unnamed: int) -> None:
        """Do the same again for messages, after wrong lines of activities have been excluded: those do not move."""
        self.find_counted()
        self._skip_messages(unnamed)

    def _skip_messages(self, unnamed: int) -> int:
        self._execute("fill_cases")
        self._execute("fill_staged_cases")
        self._execute("fill_staged_cases_of_counted")
        self._execute("remove_moved_messages")
        return self._skip("message", unnamed)

    def _skip(self, record_type: str, unnamed: int) -> int:
        row = self._execute(f"skip_taken_along {TABLES[record_type].name}", unnamed=unnamed).fetchone()
        return 0 if row is None else int(row[0])

    def hide(self) -> None:
        """Decide which activities visitors see, before the activities are written."""
        self._execute("fill_hidden")
        self._execute("fill_hidden_as_stored")

    def place(self) -> None:
        """Assign messages to the cases of their activities, after those have been written."""
        self._execute("fill_cases")

    def remove_contents(self) -> None:
        """Remove the messages that removed activities take along, before those are removed."""
        if self._has_contents:
            # Only with their number known, the planner finds the messages of a few by index.
            self._execute("analyze_staging activities")
            self._execute("remove_contents")

    def count(self) -> None:
        """Count the messages of activities, after they have been written and removed."""
        self._execute("create_counts")
        self._execute("write_counts")
