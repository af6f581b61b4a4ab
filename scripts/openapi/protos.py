"""What the .proto files say: descriptors with their options and comments."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

Symbol = Descriptor | FieldDescriptor | MethodDescriptor | ServiceDescriptor

CODES = {
    "INVALID_ARGUMENT": "400",
    "PERMISSION_DENIED": "403",
    "NOT_FOUND": "404",
    "ABORTED": "409",
    "RESOURCE_EXHAUSTED": "429",
    "UNAVAILABLE": "503",
    "DEADLINE_EXCEEDED": "504",
}
"""gRPC codes that comments speak of, and what HTTP clients see instead."""


class Protos:
    """A set of descriptors that knows its comments.

    Args:
        image: a FileDescriptorSet with source info, serialized, dependencies first.
    """

    def __init__(self, image: bytes) -> None:
        self.files = descriptor_pb2.FileDescriptorSet.FromString(image).file
        self.pool = descriptor_pool.DescriptorPool()
        self._comments: dict[str, str] = {}
        for file in self.files:
            self.pool.Add(file)
            self._read_comments(file)

    def services(self, package: str) -> list[ServiceDescriptor]:
        """Return the services of a package: the one named like it first, the one that documents them last."""
        found = [
            (file.name, self.pool.FindServiceByName(f"{package}.{service.name}"))
            for file in self.files
            if file.package == package
            for service in file.service
        ]
        first = f"{package.partition('.')[0]}.proto"
        found.sort(key=lambda item: (not item[0].endswith(f"/{first}"), item[0].endswith("/docs.proto"), item[0]))
        return [service for _, service in found]

    def message(self, name: str) -> Descriptor:
        """Return a message by its full name.

        Raises:
            KeyError: there is none.
        """
        return self.pool.FindMessageTypeByName(name)

    def message_names(self) -> set[str]:
        """Return the names, without their packages, of all messages but Google's."""
        return {
            message.name
            for file in self.files
            if not file.package.startswith("google.")
            for message in file.message_type
        }

    def option(self, symbol: Symbol, kind: str, extension: str) -> Any:
        """Return the value of an option, or None where it is not set.

        Args:
            symbol: what may carry it.
            kind: the message of descriptor.proto that it extends, such as "MethodOptions".
            extension: its full name.
        """
        try:
            # Typed in the stubs for generated code only, where extensions have classes of their own.
            descriptor: Any = self.pool.FindExtensionByName(extension)
        except KeyError:
            return None
        options = message_factory.GetMessageClass(self.message(f"google.protobuf.{kind}"))()
        options.ParseFromString(symbol.GetOptions().SerializeToString())
        if descriptor.is_repeated:
            return list(options.Extensions[descriptor])
        return options.Extensions[descriptor] if options.HasExtension(descriptor) else None

    def comment(self, symbol: Symbol) -> str:
        """Return what stands above a symbol, as sentences for people who see HTTP.

        The symbol's own name at the beginning goes, and so does the paragraph
        that gives the reason of a lint exemption.
        """
        paragraphs = [
            part for part in self._comments.get(symbol.full_name, "").split("\n\n") if "buf:lint:" not in part
        ]
        text = "\n\n".join(_unwrap(part) for part in paragraphs).strip()
        text = re.sub(rf"^{re.escape(symbol.name)}:? (?:(?:is|are) )?", "", text)
        text = re.sub(
            r"\b[A-Z]+_[A-Z]+\b|\bABORTED\b|\bUNAVAILABLE\b", lambda found: CODES.get(found[0], found[0]), text
        )
        return text[:1].upper() + text[1:]

    def _read_comments(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        for location in file.source_code_info.location:
            if location.leading_comments:
                name = _name_at(file, list(location.path))
                lines = (line.removeprefix(" ").rstrip() for line in location.leading_comments.splitlines())
                self._comments[name] = "\n".join(lines).strip()


def _unwrap(paragraph: str) -> str:
    """Join the lines of a paragraph; those of a list stay apart."""
    return re.sub(r"\n(?!- )\s*", " ", paragraph)


def _name_at(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str:
    """Return the full name of the symbol at a path of field numbers and indices, "" for other things."""
    names = [file.package]
    here: Any = file
    for number, index in zip(path[::2], path[1::2], strict=False):
        field = here.DESCRIPTOR.fields_by_number[number]
        if not field.is_repeated or field.message_type is None:
            return ""
        here = getattr(here, field.name)[index]
        if not hasattr(here, "name"):
            return ""
        names.append(here.name)
    return ".".join(names) if len(path) % 2 == 0 else ""


def path_of(method: MethodDescriptor) -> str:
    """Return a method's full name as gRPC calls it: /package.Service/Method."""
    return f"/{method.containing_service.full_name}/{method.name}"
