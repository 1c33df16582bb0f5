"""The machines that a run works on, where they are more than one process of this machine."""

from __future__ import annotations

from pydantic import field_validator

from sao.config.section import Section, setting


class RayConfig(Section):
    """Ray, which runs the replicas of engines and the processes of training (extra sao[ray])."""

    address: str | None = setting(default=None, affects_records=False, because="where work is done")
    """local (Ray is started here for this run), auto (the cluster that this machine belongs to), or HOST:PORT
    of its head. null: no Ray, unless engine.replicas or train.nodes asks for it; then RAY_ADDRESS, else
    local. With an address all GPUs of the cluster work: see engine.replicas and train.processes."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address is None or address in ("local", "auto"):
            return address
        if address.startswith("ray://"):
            raise ValueError(
                "ray:// is a connection from outside the cluster, which is not supported. Start sao on a "
                "machine of the cluster with --ray.address auto"
            )
        host, _, port = address.rpartition(":")
        if not (host and port.isdigit()):
            raise ValueError("an address is local, auto or HOST:PORT, such as 10.0.0.1:6379")
        return address
