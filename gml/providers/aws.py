"""Amazon EC2 through boto3: one instance with GPUs, on demand or spot.

EC2 has no time limit, but shutting down terminates (InstanceInitiatedShutdownBehavior): the
watchdog ends its machine with `shutdown -P` and needs no key. Region stands for zone.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from gaia.extras import install
from gaia.hardware import Sku
from gml import errors
from gml.clock import service_clock
from gml.config import Config
from gml.durations import format_duration
from gml.errors import GmlError, StockOut, Unavailable, UsageError
from gml.http import Http
from gml.model import ApiRequest, CreateSpec, Host, Node, Offer, node_from_labels
from gml.progress import Progress, silent
from gml.providers.aws_failures import translate
from gml.providers.base import Check, check, check_free
from gml.startup import EC2_BYTES, startup_script, watchdog_config
from gml.store import Store

_STATES = {"pending": "creating", "running": "ready", "shutting-down": "deleting",
           "terminated": "gone", "stopping": "terminated", "stopped": "terminated"}  # fmt: skip
_LIVE = ["pending", "running", "stopping", "stopped", "shutting-down"]
# A new instance may be missing from the list for so long.
LIST_LAG_S = 10.0
# Ubuntu with NVIDIA's driver, made by AWS.
IMAGE = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)*"
_KEY_SCRIPT = """cd /home/ubuntu && install -d -m 700 -o ubuntu -g ubuntu .ssh
echo '{key}' | install -m 600 -o ubuntu -g ubuntu /dev/stdin .ssh/authorized_keys
"""


class AwsProvider:
    """EC2's instances behind gml's protocol."""

    name = "aws"
    ssh_user = "ubuntu"

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.patience_s = 900.0
        self._clients: dict[str, Any] = {}

    @property
    def regions(self) -> list[str]:
        """Regions of the configuration."""
        return self.config.aws.regions.replace(",", " ").split()

    def ready(self) -> bool:
        """Tells whether regions are configured."""
        return bool(self.regions)

    def sign_in(self) -> None:
        """Credentials as boto3 finds them; raises AuthError."""
        self._client(self.regions[0] if self.regions else "us-east-1")

    def ask_time(self) -> None:
        """EC2's time, from an answer without credentials."""
        Http(self.config.endpoint("aws"), dict).ask_time()

    def base_url(self, service: str) -> str:
        """Base address of a service."""
        return self.config.endpoint("aws")

    # ---- calls

    def _client(self, region: str) -> Any:
        if region in self._clients:
            return self._clients[region]
        try:
            import boto3  # pyright: ignore[reportMissingImports]
            from botocore.config import Config as Botocore  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise errors.AuthError("boto3 is not installed", install("aws")) from None
        session = boto3.Session(region_name=region)
        if session.get_credentials() is None:
            raise errors.AuthError("no AWS credentials", "run: aws configure")
        settings = Botocore(
            retries={"total_max_attempts": 5, "mode": "standard"}, connect_timeout=15
        )
        address = self.config.endpoint("aws")
        custom = address if address != "https://ec2.amazonaws.com" else None
        self._clients[region] = session.client("ec2", endpoint_url=custom, config=settings)
        return self._clients[region]

    def _call(self, region: str, action: str, **arguments: Any) -> dict[str, Any]:
        """An API call; its failure as a GmlError. `refused` where it changed nothing."""
        client = self._client(region)
        from botocore.exceptions import BotoCoreError, ClientError  # pyright: ignore[reportMissingImports]

        sent = time.time()
        try:
            answer = getattr(client, action)(**arguments)
        except ClientError as error:
            about = error.response.get("Error", {})
            meta = error.response.get("ResponseMetadata", {})
            failure = translate(str(about.get("Code")), str(about.get("Message")), region)
            status, tries = meta.get("HTTPStatusCode", 500), meta.get("RetryAttempts", 0)
            failure.refused = status < 500 and tries == 0
            raise failure from None
        except BotoCoreError as error:
            raise Unavailable(f"EC2 in {region} does not answer ({error})", "try again") from None
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        service_clock.note(headers.get("date", ""), sent, time.time())
        return answer

    # ---- offers

    def offers(
        self, sku: Sku, *, spot: bool, zone: str = "", live: bool = False, strategy: str = ""
    ) -> list[Offer]:
        """The configured regions; spot prices are EC2's of now, the others of the dated table."""
        if not sku.aws_type:
            return []
        offers = []
        for region in [r for r in self.regions if zone in ("", r)]:
            price = sku.price_per_hour(region=region, provider="aws")
            if spot:
                price = self._spot_price(region, sku.aws_type) if live else None
            source = "live" if spot and live else "list price"
            end = "watchdog (shutdown terminates) + reap"
            offers.append(
                Offer(self.name, sku.name, region, spot, price, "?", "launch", end, source)
            )
        return sorted(offers, key=lambda o: (o.price is None, o.price or 0.0))

    def _spot_price(self, region: str, instance_type: str) -> float | None:
        answer = self._call(
            region, "describe_spot_price_history", InstanceTypes=[instance_type],
            ProductDescriptions=["Linux/UNIX"], MaxResults=50,
        )  # fmt: skip
        newest: dict[str, tuple[Any, float]] = {}
        for item in answer.get("SpotPriceHistory", []):
            zone, when = item["AvailabilityZone"], item["Timestamp"]
            if zone not in newest or when > newest[zone][0]:
                newest[zone] = (when, float(item["SpotPrice"]))
        # EC2 chooses the zone: the dearest is what it may cost.
        return max((price for _, price in newest.values()), default=None)

    # ---- create

    def create_requests(self, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
        """The launch; image and security group are looked up before it."""
        body = {"Action": "RunInstances", "Region": offer.zone, **self._launch(spec, offer)}
        return [ApiRequest("aws", "POST", "", {}, body)]

    def _launch(self, spec: CreateSpec, offer: Offer) -> dict[str, Any]:
        assert spec.sku is not None
        watchdog = watchdog_config(spec, delete=[], use_metadata=False)
        key = _KEY_SCRIPT.format(key=spec.public_key.replace("'", ""))
        labels = {**spec.labels(), "Name": f"gml-{spec.id}"}
        tags = [{"Key": k, "Value": v} for k, v in labels.items()]
        kinds = ("instance", "volume", *(["spot-instances-request"] if spec.spot else []))
        made = f"gml/{spec.id}/{spec.owner}/{offer.zone}/{spec.created}"
        launch: dict[str, Any] = {
            "ImageId": self.config.aws.image or f"newest of {IMAGE!r}",
            "InstanceType": spec.sku.aws_type,
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": str(uuid.uuid5(uuid.NAMESPACE_URL, made)),
            "UserData": startup_script(watchdog, key, EC2_BYTES),
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required"},
            "TagSpecifications": [{"ResourceType": k, "Tags": tags} for k in kinds],
            "BlockDeviceMappings": [
                {
                    "DeviceName": "/dev/sda1",
                    "Ebs": {"VolumeSize": spec.disk_gb, "VolumeType": "gp3",
                            "DeleteOnTermination": True},
                }
            ],
        }  # fmt: skip
        if spec.spot:
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            launch["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        return launch

    def create(self, spec: CreateSpec, offer: Offer, progress: Progress = silent) -> Node:
        """Launches at most one instance, waits until it runs, removes any double."""
        region = offer.zone
        try:
            listed = [n for n in self._instances(region) if n.id == spec.id]
            existing = [n for n in listed if n.state != "deleting"]
            check_free(existing, spec)
            launch = self._launch(spec, offer)
            if not self.config.aws.image and not existing:
                launch["ImageId"] = self._image(region)
            launch["SecurityGroupIds"] = [self._group(region)] if not existing else []
        except GmlError as error:
            error.nothing_made = True
            raise
        if existing:
            chosen = _instance_id(existing[0])
        else:
            progress(f"asking EC2 to launch it in {region}")
            try:
                answer = self._call(region, "run_instances", **launch)
            except GmlError as error:
                error.nothing_made = error.refused
                raise
            chosen = answer["Instances"][0]["InstanceId"]
        node = self._wait_running(region, chosen, spec, progress)
        doubles = [_instance_id(n) for n in self._instances(region) if spec.made(n)]
        if extra := [i for i in doubles if i != chosen]:
            progress("terminating a double of the launch")
            self._call(region, "terminate_instances", InstanceIds=extra)
        return node

    def _image(self, region: str) -> str:
        filters = [{"Name": "name", "Values": [IMAGE]}, {"Name": "state", "Values": ["available"]}]
        answer = self._call(region, "describe_images", Owners=["amazon"], Filters=filters)
        images = sorted(answer.get("Images", []), key=lambda i: i.get("CreationDate", ""))
        if not images:
            raise UsageError(f"no image {IMAGE!r} in {region}", "set aws.image in config.toml")
        return images[-1]["ImageId"]

    def _group(self, region: str) -> str:
        """The security group that lets ssh in."""
        name = self.config.aws.security_group
        filters = [{"Name": "group-name", "Values": [name]}]
        groups = self._call(region, "describe_security_groups", Filters=filters)["SecurityGroups"]
        if not groups:
            raise UsageError(
                f"no security group {name!r} in {region}",
                f"aws ec2 create-security-group --region {region} --group-name {name}, then "
                "authorize-security-group-ingress for tcp port 22",
            )
        return groups[0]["GroupId"]

    def _wait_running(
        self, region: str, instance_id: str, spec: CreateSpec, progress: Progress
    ) -> Node:
        waited, pause = 0.0, min(1.0, self.config.backoff_s)
        while True:
            node = next((n for n in self._instances(region, [instance_id], gone=True)), None)
            if node and node.state == "ready" and node.hosts:
                return node
            if node and (node.dead() or node.state in ("gone", "deleting")):
                raise StockOut(f"EC2's instance came up {node.state}", "try another region")
            progress(f"waiting for {spec.id} to boot")
            if waited > self.patience_s:
                raise Unavailable(f"{spec.id} did not boot within {format_duration(waited)}")
            time.sleep(pause)
            waited += pause
            pause = min(pause * 1.5, 10.0)

    # ---- look and change

    def _instances(
        self, region: str, ids: list[str] | None = None, *, gone: bool = False
    ) -> list[Node]:
        filters = [{"Name": "tag:gml", "Values": ["1"]}]
        if not gone:
            filters.append({"Name": "instance-state-name", "Values": _LIVE})
        if ids:
            filters.append({"Name": "instance-id", "Values": ids})
        nodes, token = [], {}
        while True:
            page = self._call(region, "describe_instances", Filters=filters, **token)
            for group in page.get("Reservations", []):
                nodes += [n for raw in group["Instances"] if (n := self._node(raw, region))]
            if not page.get("NextToken"):
                return nodes
            token = {"NextToken": page["NextToken"]}

    def _node(self, raw: dict[str, Any], region: str) -> Node | None:
        labels = {t["Key"]: t["Value"] for t in raw.get("Tags", [])}
        port = labels.get("gml-ssh-port", "")
        address = raw.get("PublicIpAddress") or raw.get("PrivateIpAddress") or ""
        host = Host(address, raw.get("PrivateIpAddress") or "", int(port or 22), self.ssh_user)
        state = str(raw["State"]["Name"])
        return node_from_labels(
            labels,
            provider=self.name,
            zone=region,
            state=_STATES.get(state, state),
            strategy="launch",
            hosts=(host,) if address else (),
            resources=(f"aws:{region}/{raw['InstanceId']}",),
        )

    def _everywhere(self, regions: list[str], look: Callable[[str], list[Node]]) -> list[Node]:
        nodes, problems = [], []
        for region in regions:
            try:
                nodes += look(region)
            except GmlError as error:
                problems.append(str(error))
        if problems:
            raise errors.Incomplete("; ".join(problems), seen=nodes)
        return nodes

    def list_nodes(self) -> list[Node]:
        """Instances with our tags in the configured regions that are still billed."""
        live = self._everywhere(self.regions, self._instances)
        return [n for n in live if n.state != "deleting"]

    def find(self, node: Node) -> Node | None:
        """The instance by tag, where it was tried; a new one's list lag is waited out first."""
        new = node.tried and (node.phase == "intent" or time.time() - node.created < 60)
        until = time.monotonic() + (LIST_LAG_S if new else 0.0)
        while True:
            if (ours := self._billed(node)) or time.monotonic() > until:
                return ours[0] if ours else None
            time.sleep(min(1.0, LIST_LAG_S / 5))

    def _billed(self, node: Node) -> list[Node]:
        live = self._everywhere(self._regions_of(node), self._instances)
        return [n for n in live if node.holds(n) and n.state != "deleting"]

    def _regions_of(self, node: Node) -> list[str]:
        tried = [t.partition(":")[2] for t in node.tried]
        return list(dict.fromkeys([*tried, *([node.zone] if node.zone else [])])) or self.regions

    def ended_at(self, node: Node) -> int | None:
        """EC2 remembers a terminated instance for about an hour, with the time of its end."""
        import calendar

        for region in self._regions_of(node):
            answer = self._call(
                region, "describe_instances", Filters=[{"Name": "tag:gml-id", "Values": [node.id]}]
            )
            for raw in (i for r in answer.get("Reservations", []) for i in r["Instances"]):
                text = raw.get("StateTransitionReason") or ""
                if match := re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", text):
                    return calendar.timegm(time.strptime(match[1], "%Y-%m-%d %H:%M:%S"))
        return None

    def delete_requests(self, node: Node) -> list[ApiRequest]:
        """One terminate call for each instance."""
        return [
            ApiRequest("aws", "POST", "", {}, {"Action": "TerminateInstances", "Region": r,
                                               "InstanceIds": [i]})
            for r, i in _places(node)
        ]  # fmt: skip

    def delete(self, node: Node, progress: Progress = silent) -> None:
        """Terminates every instance of the node; returns when none of them is billed."""
        waited, pause = 0.0, min(1.0, self.config.backoff_s)
        remaining = self._billed(node) if self.find(node) else []
        while remaining:
            for region, instance in (place for n in remaining for place in _places(n)):
                self._call(region, "terminate_instances", InstanceIds=[instance])
            progress(f"waiting for EC2 to terminate {node.id}")
            time.sleep(pause)
            waited += pause
            if waited > self.patience_s:
                raise Unavailable(f"{node.id} is still there after {format_duration(waited)}")
            remaining = self._billed(node)

    def deadline_requests(self, node: Node, deadline: int | None) -> list[ApiRequest]:
        """The tag that carries the deadline."""
        tag = {"Key": "gml-deadline", "Value": "none" if deadline is None else str(deadline)}
        return [
            ApiRequest("aws", "POST", "", {}, {"Action": "CreateTags", "Region": r,
                                               "Resources": [i], "Tags": [tag]})
            for r, i in _places(node)
        ]  # fmt: skip

    def set_deadline(self, node: Node, deadline: int | None) -> Node:
        """Changes the tag; the watchdog is told over ssh."""
        live = self.find(node)
        if live is None:
            raise Unavailable(f"{node.id} is gone", "see `gml ls --refresh`")
        for request in self.deadline_requests(live, deadline):
            body = request.body or {}
            tags = {"Resources": body["Resources"], "Tags": body["Tags"]}
            self._call(body["Region"], "create_tags", **tags)
        return node.replace(deadline=deadline)

    def doctor(self, instance_type: str = "") -> list[Check]:
        """Credentials and each region's answer."""
        checks = []
        for region in self.regions:
            try:
                count = len(self._instances(region))
                checks.append(check(f"EC2 in {region}", True, f"answers; {count} machines"))
            except GmlError as error:
                checks.append(check(f"EC2 in {region}", False, error.problem, error.remedy))
        fix = 'set aws.regions = "us-east-1 us-west-2" in config.toml'
        return checks or [check("aws regions", False, "none is configured", fix)]


def _places(node: Node) -> list[tuple[str, str]]:
    names = (r.removeprefix("aws:").split("/", 1) for r in node.resources if r.startswith("aws:"))
    return [(region, instance) for region, instance in names]


def _instance_id(node: Node) -> str:
    return _places(node)[0][1]
