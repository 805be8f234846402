/* Variables. Runtime services do all of it, so it works before and after boot services are left. */
#include "app.h"

#define ATTRIBUTES (EFI_VARIABLE_NON_VOLATILE | EFI_VARIABLE_BOOTSERVICE_ACCESS | EFI_VARIABLE_RUNTIME_ACCESS)
#define NAME_LIMIT 64
#define VALUE_LIMIT 256

static EFI_GUID vendor = { 0x9bd27df5, 0x0f0c, 0x4c5b, { 0xa6, 0x9e, 0x6f, 0x2b, 0x58, 0x33, 0x71, 0x0d } };

static CHAR16 *wide(const CHAR8 *name)
{
	static CHAR16 buffer[NAME_LIMIT];
	UINTN length;

	for (length = 0; name[length] && length < NAME_LIMIT - 1; length++)
		buffer[length] = name[length];
	buffer[length] = 0;
	return buffer;
}

/* Reads at most VALUE_LIMIT - 1 bytes, which end with a zero. */
static EFI_STATUS get(const CHAR8 *name, CHAR8 *value)
{
	UINTN size = VALUE_LIMIT - 1;
	EFI_STATUS status = RT->GetVariable(wide(name), &vendor, NULL, &size, value);

	value[EFI_ERROR(status) ? 0 : size] = 0;
	return status;
}

/* A variable that is there with another size is not ours; counting starts anew. */
void count_boots(void)
{
	UINT32 value = 0;
	UINTN size = sizeof value;
	EFI_STATUS status = RT->GetVariable(L"PaddockBoots", &vendor, NULL, &size, &value);

	boots = (!EFI_ERROR(status) && size == sizeof value ? value : 0) + 1;
	if (EFI_ERROR(status) && status != EFI_NOT_FOUND)
		fail(L"PaddockBoots cannot be read: %r", status);
	status = RT->SetVariable(L"PaddockBoots", &vendor, ATTRIBUTES, sizeof boots, &boots);
	if (EFI_ERROR(status))
		fail(L"PaddockBoots cannot be written: %r", status);
}

void set_variable(const CHAR8 *name, const CHAR8 *value)
{
	EFI_STATUS status = RT->SetVariable(wide(name), &vendor, ATTRIBUTES, strlena(value), (void *)value);

	if (EFI_ERROR(status))
		fail(L"set %a: %r", name, status);
	else
		say(L"EFI-APP set %a=\"%a\"%s", name, value, boot_services ? L"" : L" at runtime");
}

void get_variable(const CHAR8 *name)
{
	CHAR8 value[VALUE_LIMIT];
	EFI_STATUS status = get(name, value);

	if (status == EFI_NOT_FOUND)
		say(L"EFI-APP get %a is not there", name);
	else if (EFI_ERROR(status))
		fail(L"get %a: %r", name, status);
	else
		say(L"EFI-APP get %a=\"%a\"", name, value);
}

void expect_variable(const CHAR8 *name, const CHAR8 *value)
{
	CHAR8 found[VALUE_LIMIT];
	EFI_STATUS status = get(name, found);

	if (EFI_ERROR(status))
		fail(L"expect %a: %r", name, status);
	else if (strcmpa(value, found))
		fail(L"expect %a: it is \"%a\"", name, found);
	else
		say(L"EFI-APP expect %a=\"%a\": so it is", name, value);
}

void delete_variable(const CHAR8 *name)
{
	EFI_STATUS status = RT->SetVariable(wide(name), &vendor, ATTRIBUTES, 0, NULL);

	if (EFI_ERROR(status))
		fail(L"delete %a: %r", name, status);
	else
		say(L"EFI-APP deleted %a", name);
}

/* What churn writes: an interrupted write must leave this one or the one before, never a mixture. */
struct churned {
	UINT32 number;
	UINT8 filling[508];
};

static UINT8 filling(UINT32 number, UINTN index)
{
	return (UINT8)(number * 31 + index);
}

/* Writes a variable again and again, so often that the store has to be compacted now and then; 0: until somebody ends it. */
void churn(UINTN count)
{
	static struct churned value;

	for (UINT32 number = 1; !count || number <= count; number++) {
		EFI_STATUS status;

		value.number = number;
		for (UINTN index = 0; index < sizeof value.filling; index++)
			value.filling[index] = filling(number, index);
		status = RT->SetVariable(L"PaddockChurn", &vendor, ATTRIBUTES, sizeof value, &value);
		if (EFI_ERROR(status)) {
			fail(L"churn %d: %r", number, status);
			return;
		}
		say(L"EFI-APP churned %d", number);
	}
}

void check_churn(void)
{
	struct churned value;
	UINTN size = sizeof value;
	EFI_STATUS status = RT->GetVariable(L"PaddockChurn", &vendor, NULL, &size, &value);

	if (status == EFI_NOT_FOUND) {
		say(L"EFI-APP churn kept 0");
		return;
	}
	if (EFI_ERROR(status) || size != sizeof value) {
		fail(L"check-churn: %r, %d bytes", status, size);
		return;
	}
	for (UINTN index = 0; index < sizeof value.filling; index++)
		if (value.filling[index] != filling(value.number, index)) {
			fail(L"check-churn: value %d is torn at byte %d", value.number, index);
			return;
		}
	say(L"EFI-APP churn kept %d", value.number);
}
