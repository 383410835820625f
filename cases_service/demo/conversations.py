"""Makes up a conversation for each case of the demo data, which says nothing of what was said.

What is said fits the complaint, and how it ends fits the case: who writes last, and what has not been read. The same
case gets the same conversation each time.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

Row = dict[str, Any]

# By how words of the complaint begin, the first that fits: what the visitor writes, is asked, replies, and is answered.
_TALKS: Final[Sequence[tuple[tuple[str, ...], Sequence[tuple[str, str, str, str]]]]] = (
    (
        ("noise",),
        (
            (
                "It has been loud for two hours now.",
                "Thank you. Is it still going on, and where exactly does it come from?",
                "Yes, still. From the second floor, facing the street.",
                "A patrol car has been told. It goes there between emergencies.",
            ),
            (
                "This happens every weekend, until three in the morning.",
                "We are sorry to hear that. At what time does it usually begin?",
                "Around eleven at night.",
                "We have passed that on, so that somebody comes when it happens.",
            ),
        ),
    ),
    (
        ("taxi", "for hire"),
        (
            (
                "The driver refused to take me there.",
                "Do you have the number of the car, or the receipt?",
                "Only the time: it was just after eight.",
                "That helps. We have asked the base for its list of trips.",
            ),
        ),
    ),
    (
        ("broken parking meter", "broken muni meter"),
        (
            (
                "The meter took my money and printed nothing.",
                "Could you tell us the number on its front?",
                "It was covered by a sticker. It is the one at the corner.",
                "Thank you. It is checked on the next round, and a ticket for it can be disputed.",
            ),
        ),
    ),
    (
        ("derelict",),
        (
            (
                "This car has not moved for two months. It has two flat tires.",
                "Could you tell us its colour, and whether there is a license plate?",
                "It is a grey sedan. There is no plate.",
                "Thank you. It gets a notice first, and is towed if nobody moves it.",
            ),
            (
                "Somebody has left an old van here and taken the wheels.",
                "Is it in the street, or on private ground?",
                "In the street, in front of the bakery.",
                "Then it is ours to remove. A truck is scheduled.",
            ),
        ),
    ),
    (
        ("blocked driveway", "illegal parking"),
        (
            (
                "A car has been standing here since this morning, and nobody gets past.",
                "Could you tell us its colour and the license plate?",
                "It is white. I could not read the plate from here.",
                "Thank you. An officer is on the way to look at it.",
            ),
            (
                "It is there again. I have complained about this before.",
                "We found your earlier complaint. Is it the same vehicle?",
                "Yes, the same one.",
                "We have noted that. It counts as a repeated complaint.",
            ),
        ),
    ),
    (
        ("street light",),
        (
            (
                "The corner is completely dark at night.",
                "Is there a number on the pole? It is on a small plate at eye level.",
                "I could not find one. It is the pole next to the bus stop.",
                "That is enough for us to find it. An electrician is scheduled.",
            ),
            (
                "Is this the right place to tell you about the lamp in front of our house?",
                "It is. Is it only this one, or others in the street, too?",
                "Only this one, as far as I can see.",
                "Thank you. We have added that for the crew.",
            ),
        ),
    ),
    (
        ("traffic signal",),
        (
            (
                "The signal does not change any more. Cars go through on red.",
                "Is it so in all directions, and for pedestrians as well?",
                "In one direction only. The pedestrian light works.",
                "Thank you. A crew has been sent.",
            ),
        ),
    ),
    (
        ("graffiti",),
        (
            (
                "Somebody has painted the whole side of the building.",
                "About how large is it, and may we come onto the property?",
                "Ten feet wide. Yes, the gate is open by day.",
                "Thank you. A cleaning crew is scheduled.",
            ),
        ),
    ),
    (
        ("new tree",),
        (
            (
                "There is an empty bed in front of our house.",
                "Is there a hydrant or a driveway next to it?",
                "No, only the sidewalk.",
                "Then a tree can be planted there. Planting is in spring and in autumn.",
            ),
        ),
    ),
    (
        ("tree", "root"),
        (
            (
                "Could you have a look at this before the next storm?",
                "Is anything hanging over the sidewalk or touching a wire?",
                "One branch is over the sidewalk. No wires.",
                "A forester has been told and will inspect it.",
            ),
        ),
    ),
    (
        ("hydrant", "water system", "sewer"),
        (
            (
                "I told you about this on the phone. It has become worse since.",
                "Thank you. Is the street or a basement under water?",
                "The street, up to the curb.",
                "A crew has been sent. Please keep away from it until they are there.",
            ),
        ),
    ),
    (
        ("heat",),
        (
            (
                "The radiators have been cold since Friday.",
                "Have you told the landlord, and is the whole building without heat?",
                "I have, twice. Everybody in the house is cold.",
                "We have called the owner. If it is not mended, an inspector comes.",
            ),
        ),
    ),
    (
        ("street condition", "sidewalk condition", "highway", "pothole", "curb"),
        (
            (
                "I nearly fell off my bicycle there.",
                "How wide is it, about, and is it in the middle of the lane?",
                "As wide as a tire, on the right-hand side.",
                "Thank you. It has been marked, and a crew fills it in the next days.",
            ),
        ),
    ),
    (
        ("request large bulky", "electronics waste"),
        (
            (
                "Do I have to be at home when you come?",
                "No. Please put everything out on the evening before.",
                "Good, I do that.",
                "Thank you. The truck comes between six and noon.",
            ),
        ),
    ),
    (
        ("missed collection", "litter", "sanitation condition", "dirty"),
        (
            (
                "It has been lying there for days.",
                "Is it on the sidewalk or in the street?",
                "Partly on both. People have to walk around it.",
                "Thank you. It is on the route for tomorrow morning.",
            ),
        ),
    ),
    (
        ("construction", "building/use", "inspection team", "scaffold", "elevator"),
        (
            (
                "They are at it again, and there is no permit on the fence.",
                "Is anybody working there now, and on which floor?",
                "Three people, on the top floor.",
                "Thank you. An inspector has been told, and writes down what is found.",
            ),
        ),
    ),
    (
        ("door", "paint", "floor", "plumbing", "leak", "appliance", "general:", "unsanitary", "electric:", "safety"),
        (
            (
                "The landlord does not answer my calls any more.",
                "When did you tell them about it for the first time?",
                "Three weeks ago, in writing.",
                "Thank you. We are sending them a notice and set a date.",
            ),
            (
                "It gets worse every day, and we have a small child here.",
                "An inspector has to see it. Is anybody at home in the afternoon?",
                "Yes, after two.",
                "Then we come after two. You get a call on the day before.",
            ),
        ),
    ),
)
_ANYTHING_ELSE: Final = (
    (
        "I would like to know how this is going on.",
        "Thank you for writing. Is there anything that has changed since you told us?",
        "No, it is all as I described it.",
        "We are looking into it and write to you as soon as there is a result.",
    ),
    (
        "I hope that I am right here with this.",
        "You are. Is there anything that we should know besides?",
        "Not that I can think of.",
        "Then we have all that we need.",
    ),
)
_FOLLOW_UPS: Final = ("Is there any news?", "It is still the same today.", "I could send you a photo, if that helps.")
_CALLED: Final = "You called us."
_CLOSED: Final = "The case was closed."
_NOTES: Final = ("Second complaint about this address.", "Ask the district office before the next visit.")


@dataclass(frozen=True, slots=True)
class _Line:
    sender_type: str
    text: str
    is_private: bool = False
    is_read: bool = True


def conversations_of(rows: Sequence[Row], *, now: datetime) -> Iterator[Row]:
    """Return lines of the load format, an activity and some messages, for each case among lines of the load format."""
    for row in rows:
        if row["type"] == "case":
            yield from _conversation(row, now)


def _conversation(case: Row, now: datetime) -> Iterator[Row]:
    case_id, organization_id = UUID(case["id"]), case["organization_id"]
    lines = list(_lines(case))
    times = _times(case, len(lines), now)
    activity_id = str(uuid5(case_id, "activity"))
    yield {
        "type": "activity",
        "id": activity_id,
        "organization_id": organization_id,
        "case_id": case["id"],
        "channel": case["latest_messaging_channel"] or "telephony",
        "created_at": times[0],
        "updated_at": times[-1],
        "ended_at": case["closed_at"],
    }
    for number, line in enumerate(lines):
        yield {
            "type": "message",
            "id": str(uuid5(case_id, f"message {number}")),
            "organization_id": organization_id,
            "activity_id": activity_id,
            "sender_type": line.sender_type,
            "sender_user_id": (case["owner_id"] or case["created_by_user_id"]) if line.sender_type == "user" else None,
            "text": line.text,
            "created_at": times[number],
            "read_at": times[min(number + 1, len(lines) - 1)] if line.is_read else None,
            "is_private": line.is_private,
        }


def _lines(case: Row) -> Iterator[_Line]:
    number = int(case["case_number"])
    opening, question, reply, answer = _talk(case["subject"], number)
    unread = case["unread_message_count"]
    if case["latest_messaging_channel"] is None:
        yield _Line("system", _CALLED)
    yield _Line("visitor", opening)
    if number % 5 == 0:
        yield _Line("user", _NOTES[number % len(_NOTES)], is_private=True)
    yield _Line("user", question)
    if unread:
        yield from (_Line("visitor", text, is_read=False) for text in (reply, *_FOLLOW_UPS)[:unread])
        return
    yield _Line("visitor", reply)
    if case["status"] == "Closed":
        yield _Line("user", answer, is_read=number % 6 != 0)
        yield _Line("system", _CLOSED)
    elif not case["is_waiting"]:
        yield _Line("user", answer, is_read=False)


def _talk(subject: str | None, number: int) -> tuple[str, str, str, str]:
    complaint = (subject or "").lower()
    fitting = (talks for words, talks in _TALKS if any(re.search(rf"\b{word}", complaint) for word in words))
    talks = next(fitting, _ANYTHING_ELSE)
    return talks[number % len(talks)]


def _times(case: Row, number: int, now: datetime) -> list[str]:
    """Return a time for each of some messages: from when the case was opened to its last change, later ones rarer."""
    begin, end = (datetime.fromisoformat(case[name]) for name in ("created_at", "updated_at"))
    if end - begin < timedelta(minutes=number):
        end = min(begin + timedelta(hours=1), now)
    span = end - begin
    return [(begin + span * (step / (number - 1)) ** 2).astimezone(UTC).isoformat() for step in range(number)]
