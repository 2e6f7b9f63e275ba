"""Who may connect to a port: whoever knows the secret of the run.

token   it is a password, sent as it is: strangers are kept out, whoever can listen in is not
curve   keys are made of it: all that travels is encrypted, and whoever has other keys is refused
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

__all__ = ["Guard"]

USER = "stepahead"
DOMAIN = b"stepahead"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Guard:
    """What both ends of a connection know."""

    secret: bytes
    encrypts: bool = False

    def arm(self, socket: zmq.Socket[Any], *, listens: bool) -> None:
        """Let a socket ask for the secret, or show it."""
        if listens:
            socket.zap_domain = DOMAIN
        if self.encrypts:
            socket.curve_secretkey = self._secret_key(listens)
            socket.curve_publickey = self._public_key(listens)
            if listens:
                socket.curve_server = True
            else:
                socket.curve_serverkey = self._public_key(True)
        elif listens:
            socket.plain_server = True
        else:
            socket.plain_username = USER.encode()
            socket.plain_password = self._password.encode()

    def watch(self, context: zmq.Context[Any]) -> ThreadAuthenticator:
        """Return what judges who connects to the sockets of a context; it is to be stopped."""
        judge = ThreadAuthenticator(context)
        judge.start()
        if self.encrypts:
            judge.configure_curve_callback(DOMAIN.decode(), self)
        else:
            judge.configure_plain(DOMAIN.decode(), {USER: self._password})
        return judge

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key is on the list of those that may connect, which is that of the other ends."""
        return key == self._public_key(False)

    @property
    def fingerprint(self) -> str:
        """What tells secrets apart, and nothing of what they are."""
        return self._derived(b"fingerprint").hex()

    @property
    def _password(self) -> str:
        return self._derived(b"password").hex()

    def _secret_key(self, listens: bool) -> bytes:
        return z85.encode(self._derived(b"listens" if listens else b"connects"))

    def _public_key(self, listens: bool) -> bytes:
        return zmq.curve_public(self._secret_key(listens))

    def _derived(self, purpose: bytes) -> bytes:
        return blake2b(self.secret, digest_size=KEY_BYTES, person=purpose).digest()
