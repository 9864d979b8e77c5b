"""Have Prefect's server call a webhook when a flow run fails or crashes: `DPO_DATA_NOTIFY_URL=… python flows/notify.py`.

The address is a secret, as whoever knows it may post there. So it comes from the environment and is kept in a Webhook block,
which the server encrypts. Run again, it takes the place of what was there.
"""

import os
import sys
from uuid import UUID

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import CallWebhook
from prefect.settings import PREFECT_API_URL

from dpo_data.errors import DpoDataError
from dpo_data.share import SHIPPED

sys.path.insert(0, str(SHIPPED))  # run by its path, this file would not find its neighbour

from flows.gc import signed_in

VARIABLE = "DPO_DATA_NOTIFY_URL"
NAME = "dpo-data-notify"
"""The name of the automation, and of its block."""

WORDS = "flow.name ~ '/' ~ flow_run.name ~ ' ' ~ flow_run.state.name ~ ': ' ~ (flow_run.state.message or 'no word')"
"""What is told, as Prefect renders it. Slack, Mattermost, Teams and Discord's Slack endpoint show the key `text`."""


def main() -> int:
    """Make the automation. Returns the exit code."""
    try:
        url, server = os.environ.get(VARIABLE), PREFECT_API_URL.value()
        if not url or not server:
            raise DpoDataError(f"{VARIABLE if server else 'PREFECT_API_URL'} is not set", "Set it, and run this again.")
        server = signed_in(server)
        notify(url)
    except DpoDataError as error:
        print(f"notify: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Flow runs that fail or crash are told to the webhook: {server.removesuffix('/api')}/automations")
    return 0


def notify(url: str) -> UUID:
    """Keep the webhook and make the automation. Returns its id."""
    webhook = Webhook(url=url, headers={"Content-Type": "application/json"})
    block = webhook.save(NAME, overwrite=True)
    automation = AutomationCore(
        name=NAME,
        description="A flow run failed or crashed.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=f'{{"text": {{{{ ({WORDS}) | tojson }}}}}}')],
    )
    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(NAME):
            client.delete_automation(old.id)
        return client.create_automation(automation)


if __name__ == "__main__":
    sys.exit(main())
