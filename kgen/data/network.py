"""Whether a download can begin at all. TensorFlow Datasets tries each file 11 times,
with pauses of 204 s in all, before it reports that there is no network; and more where
packets are dropped, for it sets no time limit."""

import socket
import threading
import urllib.request
from urllib.parse import urlsplit

PATIENCE = 10.0  # seconds: a slow name server takes 5, a satellite link 1
_PORTS = {"http": 80, "https": 443, "ftp": 21}


def check_reachable(urls):
    """Connects to the hosts of these addresses, all at once, until one of them answers.
    It sends nothing. Where the environment names a proxy, that is asked instead.

    Args:
        urls: addresses to download from; none, or no known kind of address: no check.

    Raises:
        ConnectionError: no host has answered within `PATIENCE` seconds.
    """
    hosts = sorted({_endpoint(url) for url in urls} - {None})
    if not hosts:
        return
    decided, failures = threading.Event(), {}

    def connect(host):
        try:
            socket.create_connection(host, PATIENCE).close()
        except OSError as error:
            failures[host] = str(error)
            if len(failures) < len(hosts):
                return
        decided.set()

    for host in hosts:  # daemons: a name server that is silent stops no exit
        threading.Thread(target=connect, args=(host,), daemon=True).start()
    if decided.wait(PATIENCE) and len(failures) < len(hosts):
        return
    why = "; ".join(
        f"{host[0]}: {failures.get(host, f'no answer in {PATIENCE:g} s')}"
        for host in hosts
    )
    raise ConnectionError(f"none of its servers can be reached ({why})")


def _endpoint(url):
    """(host, port) that a request for `url` connects to, None if that is not known."""
    address = urlsplit(url)
    default = _PORTS.get(address.scheme)
    if not default or not address.hostname:
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(address.hostname):
        address, default = urlsplit(proxy if "//" in proxy else f"//{proxy}"), None
    try:
        port = address.port or default
    except ValueError:  # no number
        return None
    return (address.hostname, port) if address.hostname and port else None
