"""The page of one tab: its views, in Bokeh."""

import html
import logging
from collections.abc import Callable
from typing import Any

from bokeh.document import Document
from bokeh.layouts import column
from bokeh.models import Div, TabPanel, Tabs

from fastlatent.commands.exploration.latents_view import LatentsView
from fastlatent.commands.exploration.layers_view import LayersView
from fastlatent.commands.exploration.map_view import MapView
from fastlatent.commands.exploration.parts import STYLE, beside
from fastlatent.commands.exploration.reconstruct_view import ReconstructView
from fastlatent.commands.exploration.samples_view import SamplesView
from fastlatent.commands.exploration.subject import Subject
from fastlatent.jobs.errors import RunError, sentence_of
from fastlatent.models import model_title
from fastlatent.models.capabilities import Layered

LOG = logging.getLogger(__name__)


class Page:
    """What one tab shows; nothing of it is shared with another."""

    def __init__(self, subject: Subject, document: Document):
        self.subject, self.document = subject, document
        name, family = subject.name, model_title(subject.run.config.model)
        self.message = Div(text="", styles={**STYLE, "color": "#b00020"}, width=800)
        self.latents = LatentsView(self)
        self.samples = SamplesView(self)
        views: dict[str, Any] = {"Samples": self.samples, "Latents": self.latents}
        if len(subject.principal) > 1:
            views["Map"] = MapView(self)
        self.views = views
        if isinstance(subject.run.model, Layered):
            views["Layers"] = LayersView(self, subject.run.model)
        views["Reconstruct"] = ReconstructView(self)
        self.tabs = Tabs(
            tabs=[TabPanel(child=view.layout, title=title) for title, view in views.items()]
        )
        heading = Div(
            text=f"<b>{html.escape(name)}</b> &nbsp; {html.escape(family)}, "
            f"{subject.run.weights} weights",
            styles={"font-size": "16px"},
        )
        notes = [Div(text=html.escape(note), styles=STYLE) for note in subject.notes]
        document.title = f"{name} - fastlatent"
        top = beside(heading, self.message)
        document.add_root(column(top, *notes, self.tabs, margin=8))

    def open(self, title: str) -> None:
        """Bring a view to the front."""
        self.tabs.active = [*self.views].index(title)

    def guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        """The action as a callback: what goes wrong is a message on the page, which lives on."""

        def run() -> None:
            try:
                action()
            except (RunError, OSError, ValueError) as error:
                self.message.text = html.escape(sentence_of(error))
            except Exception as error:
                LOG.exception("a view failed")
                self.message.text = html.escape(f"{type(error).__name__}: {sentence_of(error)}")
            else:
                self.message.text = ""

        return run

    def soon(self, action: Callable[[], None]) -> Callable[[], None]:
        """The action as a callback that runs once for all calls until it has run.

        A drag gives events faster than a decoder gives images; the last one counts.
        """
        guarded, waiting = self.guarded(action), False

        def run() -> None:
            nonlocal waiting
            waiting = False
            guarded()

        def call() -> None:
            nonlocal waiting
            if not waiting:
                waiting = True
                self.document.add_next_tick_callback(run)

        return call

    def on_change(self, action: Callable[[], None], attribute: str, *widgets: Any) -> None:
        """Do the action when that attribute of any of the widgets changes."""
        guarded = self.guarded(action)
        for widget in widgets:
            # Bokeh counts the arguments of a callback.
            widget.on_change(attribute, lambda attribute, old, new: guarded())

    def on_event(self, plot: Any, kind: type, action: Callable[[Any], None]) -> None:
        """Do the action at each event of that kind in a figure."""
        plot.on_event(kind, lambda event: self.guarded(lambda: action(event))())
