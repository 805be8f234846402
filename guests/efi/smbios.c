/* The VM's SMBIOS tables: its UUID, serial number and asset tag, and its OEM strings. */
#include "app.h"
#include <libsmbios.h>

#define OEM_STRINGS 11

/* From a structure's header to the end of the table. */
struct structure {
	const UINT8 *start, *limit;
};

static BOOLEAN table(struct structure *first)
{
	SMBIOS3_STRUCTURE_TABLE *entry3;
	SMBIOS_STRUCTURE_TABLE *entry;

	if (!EFI_ERROR(LibGetSystemConfigurationTable(&SMBIOS3TableGuid, (void **)&entry3))) {
		first->start = (const UINT8 *)(UINTN)entry3->TableAddress;
		first->limit = first->start + entry3->TableMaximumSize;
		return TRUE;
	}
	if (!EFI_ERROR(LibGetSystemConfigurationTable(&SMBIOSTableGuid, (void **)&entry))) {
		first->start = (const UINT8 *)(UINTN)entry->TableAddress;
		first->limit = first->start + entry->TableLength;
		return TRUE;
	}
	return FALSE;
}

static const SMBIOS_HEADER *header(const struct structure *at)
{
	const SMBIOS_HEADER *header = (const SMBIOS_HEADER *)at->start;

	if (at->start + sizeof *header > at->limit || header->Length < sizeof *header || at->start + header->Length > at->limit)
		return NULL;
	return header;
}

/* To the next structure: behind the two zeroes that end the strings of this one. */
static void advance(struct structure *at)
{
	at->start += header(at)->Length;
	while (at->start + 2 <= at->limit && (at->start[0] || at->start[1]))
		at->start++;
	at->start += 2;
}

/* The structure of a type, from AT on; FALSE if there is none. */
static BOOLEAN find(struct structure *at, UINT8 type)
{
	for (; header(at); advance(at))
		if (header(at)->Type == type)
			return TRUE;
	return FALSE;
}

/* A structure's string by its number, which begins at 1; "" if there is none. */
static const CHAR8 *string(const struct structure *at, UINT8 number)
{
	const UINT8 *text = at->start + header(at)->Length;

	for (; number > 1 && text < at->limit && *text; number--)
		text += strlena(text) + 1;
	return number && text < at->limit ? text : (const CHAR8 *)"";
}

/* The string whose number is a field of the structure; a structure of an older version may end before it. */
static const CHAR8 *field(const struct structure *at, UINTN offset)
{
	return offset < header(at)->Length ? string(at, at->start[offset]) : (const CHAR8 *)"";
}

/* How many strings a structure of OEM strings has. */
static UINT8 oem_count(const struct structure *at)
{
	return header(at)->Length > sizeof(SMBIOS_HEADER) ? at->start[sizeof(SMBIOS_HEADER)] : 0;
}

/* Not by gnu-efi's %g, which has names for some of them. */
static void tell_uuid(const UINT8 *bytes)
{
	EFI_GUID uuid;
	UINT8 *rest = uuid.Data4;

	CopyMem(&uuid, (void *)bytes, sizeof uuid);
	say(L"EFI-APP smbios uuid=%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", uuid.Data1, uuid.Data2, uuid.Data3, rest[0], rest[1],
	    rest[2], rest[3], rest[4], rest[5], rest[6], rest[7]);
}

void tell_smbios(void)
{
	struct structure first, at;

	if (!table(&first)) {
		say(L"EFI-APP smbios is not there");
		return;
	}
	at = first;
	if (find(&at, 1) && header(&at)->Length >= 24) {
		tell_uuid(at.start + 8);
		say(L"EFI-APP smbios serial=\"%a\"", field(&at, 7));
		say(L"EFI-APP smbios product=\"%a\"", field(&at, 5));
	}
	at = first;
	if (find(&at, 3))
		say(L"EFI-APP smbios asset=\"%a\"", field(&at, 8));
	for (at = first; find(&at, OEM_STRINGS); advance(&at))
		for (UINTN number = 1; number <= oem_count(&at); number++)
			say(L"EFI-APP smbios oem=\"%a\"", string(&at, (UINT8)number));
}

const CHAR8 *oem_string(const CHAR8 *prefix)
{
	struct structure at;
	UINTN length = strlena(prefix);

	if (!table(&at))
		return NULL;
	for (; find(&at, OEM_STRINGS); advance(&at))
		for (UINTN number = 1; number <= oem_count(&at); number++) {
			const CHAR8 *text = string(&at, (UINT8)number);

			if (!strncmpa(text, prefix, length))
				return text + length;
		}
	return NULL;
}
