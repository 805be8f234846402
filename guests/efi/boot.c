/* The firmware's boot entries: which there are, and which comes next. */
#include "app.h"

#define GLOBAL_ATTRIBUTES (EFI_VARIABLE_NON_VOLATILE | EFI_VARIABLE_BOOTSERVICE_ACCESS | EFI_VARIABLE_RUNTIME_ACCESS)

/* EFI_LOAD_OPTION: attributes, length of the paths, description, paths. */
#define DESCRIPTION 6

static void each_entry(void (*call)(UINT16 number, const CHAR16 *description, const CHAR8 *argument), const CHAR8 *argument)
{
	UINTN size;
	UINT16 *order = LibGetVariableAndSize(L"BootOrder", &EfiGlobalVariable, &size);

	for (UINTN index = 0; order && index < size / sizeof *order; index++) {
		CHAR16 name[16];
		UINT8 *option;
		UINTN length;

		SPrint(name, sizeof name, L"Boot%04x", order[index]);
		option = LibGetVariableAndSize(name, &EfiGlobalVariable, &length);
		if (option && length > DESCRIPTION)
			call(order[index], (CHAR16 *)(option + DESCRIPTION), argument);
		if (option)
			FreePool(option);
	}
	if (order)
		FreePool(order);
}

static void tell_entry(UINT16 number, const CHAR16 *description, const CHAR8 *argument)
{
	(void)argument;
	say(L"EFI-APP boot entry %04x \"%s\"", number, description);
}

/* The entries in their order, and which one it was this time. */
void tell_boot(void)
{
	UINTN size;
	UINT16 *current = LibGetVariableAndSize(L"BootCurrent", &EfiGlobalVariable, &size);

	if (current && size == sizeof *current)
		say(L"EFI-APP boot current=%04x", *current);
	if (current)
		FreePool(current);
	each_entry(tell_entry, NULL);
	tell_path(L"loaded from", volume);
}

static BOOLEAN contains(const CHAR16 *text, const CHAR8 *part)
{
	for (; *text; text++) {
		UINTN length = 0;

		while (part[length] && text[length] == part[length])
			length++;
		if (!part[length])
			return TRUE;
	}
	return FALSE;
}

static BOOLEAN chosen;

static void choose(UINT16 number, const CHAR16 *description, const CHAR8 *part)
{
	EFI_STATUS status;

	if (chosen || !*part || !contains(description, part))
		return;
	chosen = TRUE;
	status = RT->SetVariable(L"BootNext", &EfiGlobalVariable, GLOBAL_ATTRIBUTES, sizeof number, &number);
	if (EFI_ERROR(status))
		fail(L"boot-next %04x: %r", number, status);
	else
		say(L"EFI-APP boot next=%04x \"%s\"", number, description);
}

/* Has the next start begin with the first entry whose description contains this. */
void boot_next(const CHAR8 *part)
{
	chosen = FALSE;
	each_entry(choose, part);
	if (!chosen)
		fail(L"boot-next: no boot entry has '%a' in its description", part);
}
