"""Which searches show the flights of a reservation, and at what price."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tau2_lightning.environment.telecom_expert import Act

# Origin and destination by flight number.
Routes = Mapping[str, tuple[str, str]]
# A flight's number and date.
Flight = tuple[str, str]


def flights_of(entries: Sequence[Mapping[str, Any]]) -> list[Flight]:
    """Number and date of each flight in a reservation or in the arguments of a call."""
    return [(entry["flight_number"], entry["date"]) for entry in entries]


def searches(
    flights: Sequence[Flight],
    booked: Sequence[Flight],
    origin: str,
    destination: str,
    routes: Routes,
    same_cabin: bool,
) -> Iterator[Act]:
    """The searches after which an agent knows ``flights`` of a trip from ``origin`` to ``destination`` (and back).

    The route of flights that are ``booked`` is known, so that only their price is looked up, unless they stay in the
    ``same_cabin``; the others are searched as a traveller would: first nonstop, then with one stop.
    """
    for trip, start, end in _directions(flights, origin, destination, routes):
        if all(flight in booked for flight in trip):
            for number, date in () if same_cabin else trip:
                yield _search("direct", *routes[number], date)
            continue
        yield _search("direct", start, end, trip[0][1])
        if len(trip) > 1:
            yield _search("onestop", start, end, trip[0][1])


def _directions(
    flights: Sequence[Flight], origin: str, destination: str, routes: Routes
) -> Iterator[tuple[list[Flight], str, str]]:
    trip: list[Flight] = []
    start, end = origin, destination
    elsewhere = all(routes[number][1] != destination for number, _ in flights)  # then each flight is a trip of its own
    for number, date in flights:
        trip.append((number, date))
        if elsewhere:
            start, end = routes[number]
        if routes[number][1] == end:
            yield trip, start, end
            trip, start, end = [], end, start
    if trip:
        yield trip, start, end


def _search(kind: str, origin: str, destination: str, date: str) -> Act:
    arguments = {"origin": origin, "destination": destination, "date": date}
    return Act(f"search_{kind}_flight", arguments)


def prices_in(result: str, search: Act) -> dict[Flight, dict[str, float]]:
    """The prices by cabin of the flights that a search has found."""
    found: dict[Flight, dict[str, float]] = {}
    for entry in json.loads(result):
        for flight in entry if isinstance(entry, list) else [entry]:
            date = flight.get("date") or search.arguments["date"]
            found[flight["flight_number"], date] = flight["prices"]
    return found
