"""Clients that ask all the time, know what they must be told, and remember how it went."""

from __future__ import annotations

import http.client
import random
import select
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness import wait_until
from right_answers import Question
from wire import Answer

# Whoever has not been answered by then never was. Longer than a worker that hangs is left alone.
ANSWER_S = 45.0
# What an exchange comes to when there is no status: nobody took the connection, or the answer was not the right one.
REFUSED, WRONG = "refused", "wrong"


@dataclass(frozen=True)
class Exchange:
    """One request, and what became of it."""

    client: int
    path: str
    begun: float
    took: float
    # The status; `refused`, `wrong`; else the name of the error that broke it after it was sent.
    outcome: int | str
    # In words, where it is neither an answer of 200 nor one that a client is told to expect.
    why: str = ""

    @property
    def lost(self) -> bool:
        """Whether it was sent to somebody who took the connection, and never answered."""
        return isinstance(self.outcome, str) and self.outcome not in (REFUSED, WRONG)


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has closed a connection on which nothing is due."""
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])


class Traffic:
    """So many clients, from the beginning of a `with` to its end. Each asks one thing at a time."""

    def __init__(
        self,
        address: str,
        asked: Sequence[Question],
        clients: int = 4,
        keep_alive: bool = True,
        pause_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.address = address
        self.clients = clients
        self._asked = asked
        self._keep_alive = keep_alive
        self._pause_s = pause_s
        self._seed = seed
        self.seen: list[Exchange] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        try:
            wait_until(lambda: self.count(200) > 20, "the load has begun")
        except AssertionError as error:
            self.__exit__()
            raise AssertionError(f"{error}: {self.outcomes()}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        dice = random.Random(self._seed * 1000 + client)
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            asked = dice.choice(self._asked)
            begun = time.monotonic()
            outcome: int | str
            why = ""
            try:
                if connection is not None and _has_ended(connection):
                    # As every client library does: nobody has taken a request that was not sent.
                    connection.close()
                    connection = None
                if connection is None:
                    connection = http.client.HTTPConnection(self.address, timeout=ANSWER_S)
                    connection.connect()
                outcome, why, closes = self._exchange(connection, asked)
                if closes or not self._keep_alive:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                refused = isinstance(error, ConnectionRefusedError)
                outcome, why = REFUSED if refused else type(error).__name__, str(error)
                if connection is not None:
                    connection.close()
                    connection = None
            self.seen.append(Exchange(client, asked.path, begun, time.monotonic() - begun, outcome, why))
            if self._pause_s > 0 or outcome != 200:
                # Who is refused does not come back at once.
                self._stop.wait(dice.uniform(0.5, 1.5) * max(self._pause_s, 0.0 if outcome == 200 else 0.005))

    @staticmethod
    def _exchange(connection: http.client.HTTPConnection, asked: Question) -> tuple[int | str, str, bool]:
        connection.request("POST", asked.path, asked.body, asked.headers)
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        if answer.status != 200:
            return answer.status, answer.body[:300].decode(errors="replace"), response.will_close
        why = asked.why_wrong(answer)
        return (200, "", response.will_close) if why is None else (WRONG, why, response.will_close)

    # ===== how it went =====

    def outcomes(self) -> Counter[int | str]:
        """How often what became of a request."""
        return Counter(exchange.outcome for exchange in self.seen)

    def count(self, outcome: int | str) -> int:
        """How often that was it."""
        return sum(exchange.outcome == outcome for exchange in self.seen)

    def lost(self) -> list[Exchange]:
        """Those that were taken and never answered."""
        return [exchange for exchange in self.seen if exchange.lost]

    def lost_by_one(self) -> int:
        """The most that one client has lost: it has one request in flight, so no more than there were deaths."""
        return max(Counter(exchange.client for exchange in self.lost()).values(), default=0)

    def gap(self) -> float:
        """The longest time without a good answer, seconds."""
        good = sorted(exchange.begun + exchange.took for exchange in self.seen if exchange.outcome == 200)
        return max((after - before for before, after in zip(good, good[1:])), default=float("inf"))

    def wait_for_more(self, answers: int, patience_s: float = ANSWER_S) -> None:
        """Until so many more good answers have come."""
        wanted = self.count(200) + answers
        wait_until(lambda: self.count(200) >= wanted, f"{answers} more answers", patience_s)
