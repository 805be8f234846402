/*
 * The script: commands, one a line or divided by semicolons. A command that begins with '#' is a comment to the end of its line.
 *
 *   info                       tells all there is to tell
 *   connect                    has the firmware's drivers take all devices first, not only what it boots from
 *   read MEBIBYTES             tells the CRC-32 of the beginning of each block device
 *   set NAME VALUE             sets a variable; it survives a reset
 *   get NAME                   tells a variable
 *   expect NAME VALUE          fails if it is something else
 *   delete NAME
 *   churn COUNT                writes one variable that often, telling each time; 0: until the VM ends
 *   check-churn                tells which of them was kept; fails if it is not whole
 *   boot-next TEXT             has the next start begin with the first boot entry whose description contains this
 *   stall MILLISECONDS         waits by the firmware's clock
 *   exit-boot-services         of those above, only the ones for variables work afterwards
 *   return                     back to the firmware, which goes on with its next boot entry
 *   reset | warm-reset | poweroff
 *
 * In front of a command, "boots=N", "boots<N" or "boots>N" has it run only at those starts. At the end of the script: poweroff.
 */
#include "app.h"

#define FILE L"\\efi-app.txt"
#define OEM_PREFIX "efi-app:"
#define DEFAULT_SCRIPT "info"
#define SCRIPT_LIMIT 4096
#define NUMBER_LIMIT 100000000

static CHAR8 script[SCRIPT_LIMIT];

static BOOLEAN is(const CHAR8 *text, const char *other)
{
	return !strcmpa(text, (const CHAR8 *)other);
}

/* The script from the application's own volume. */
static BOOLEAN load_file(void)
{
	EFI_FILE_HANDLE root = volume ? LibOpenRoot(volume) : NULL, file;
	UINTN size = sizeof script - 1;
	EFI_STATUS status;

	if (!root || EFI_ERROR(root->Open(root, &file, FILE, EFI_FILE_MODE_READ, 0)))
		return FALSE;
	status = file->Read(file, &size, script);
	file->Close(file);
	root->Close(root);
	if (EFI_ERROR(status)) {
		fail(L"%s: %r", FILE, status);
		size = 0;
	}
	script[size] = 0;
	return TRUE;
}

static void load(void)
{
	const CHAR8 *given = oem_string((const CHAR8 *)OEM_PREFIX);

	if (!given && load_file())
		return;
	if (!given)
		given = (const CHAR8 *)DEFAULT_SCRIPT;
	for (UINTN index = 0; index < sizeof script - 1 && given[index]; index++)
		script[index] = given[index];
}

static BOOLEAN number(const CHAR8 *text, UINTN *value)
{
	*value = 0;
	if (!*text)
		return FALSE;
	for (; *text >= '0' && *text <= '9'; text++) {
		*value = *value * 10 + (*text - '0');
		if (*value > NUMBER_LIMIT)
			return FALSE;
	}
	return !*text;
}

/* Cuts the first word off: returns it, and moves REST to what follows. */
static CHAR8 *word(CHAR8 **rest)
{
	CHAR8 *start = *rest, *at;

	while (*start == ' ' || *start == '\t')
		start++;
	for (at = start; *at && *at != ' ' && *at != '\t'; at++)
		;
	if (*at)
		*at++ = 0;
	while (*at == ' ' || *at == '\t')
		at++;
	*rest = at;
	return start;
}

/* Whether a command is for this start; takes the condition off. */
static BOOLEAN applies(CHAR8 **line)
{
	CHAR8 *condition, operator;
	UINTN limit;

	if (strncmpa(*line, (const CHAR8 *)"boots", 5))
		return TRUE;
	condition = word(line);
	operator = condition[5];
	if (!operator || !number(condition + 6, &limit)) {
		fail(L"'%a' is no condition", condition);
		return FALSE;
	}
	switch (operator) {
	case '=':
		return boots == limit;
	case '<':
		return boots < limit;
	case '>':
		return boots > limit;
	default:
		fail(L"'%a' is no condition", condition);
		return FALSE;
	}
}

/* Commands for which boot services have to be there. TRUE if it was one of them. */
static BOOLEAN run_with_boot_services(const CHAR8 *command, const CHAR8 *argument)
{
	UINTN value = 0;
	BOOLEAN numeric = is(command, "read") || is(command, "stall");

	if (!numeric && !is(command, "info") && !is(command, "connect") && !is(command, "boot-next") &&
	    !is(command, "exit-boot-services"))
		return FALSE;
	if (!boot_services)
		fail(L"%a: boot services are left already", command);
	else if (numeric && !number(argument, &value))
		fail(L"%a: '%a' is no number", command, argument);
	else if (is(command, "read"))
		read_blocks(value);
	else if (is(command, "stall"))
		BS->Stall(value * 1000);
	else if (is(command, "info"))
		tell_all();
	else if (is(command, "connect"))
		connect_all();
	else if (is(command, "boot-next"))
		boot_next(argument);
	else
		leave_boot_services();
	return TRUE;
}

static void run(const CHAR8 *command, CHAR8 *argument)
{
	UINTN value;

	if (run_with_boot_services(command, argument))
		return;
	if (is(command, "set") || is(command, "expect")) {
		const CHAR8 *name = word(&argument);

		if (!*name || !*argument)
			fail(L"%a: give a name and a value", command);
		else if (is(command, "set"))
			set_variable(name, argument);
		else
			expect_variable(name, argument);
	} else if (is(command, "get")) {
		get_variable(argument);
	} else if (is(command, "delete")) {
		delete_variable(argument);
	} else if (is(command, "churn")) {
		if (number(argument, &value))
			churn(value);
		else
			fail(L"churn: '%a' is no number", argument);
	} else if (is(command, "check-churn")) {
		check_churn();
	} else if (is(command, "reset")) {
		end(EfiResetCold);
	} else if (is(command, "warm-reset")) {
		end(EfiResetWarm);
	} else if (is(command, "poweroff")) {
		end(EfiResetShutdown);
	} else {
		fail(L"'%a' is no command", command);
	}
}

static BOOLEAN among(CHAR8 character, const char *set)
{
	for (; *set; set++)
		if (character == (CHAR8)*set)
			return TRUE;
	return FALSE;
}

/* Cuts the next command off; NULL at the end of the script. */
static CHAR8 *next_command(CHAR8 **rest)
{
	CHAR8 *start = *rest, *at;

	while (among(*start, " \t\r\n;"))
		start++;
	if (!*start)
		return NULL;
	for (at = start; *at && !among(*at, *start == '#' ? "\r\n" : "\r\n;"); at++)
		;
	if (*at)
		*at++ = 0;
	*rest = at;
	return start;
}

void run_script(void)
{
	CHAR8 *rest = script, *line;

	load();
	while ((line = next_command(&rest))) {
		CHAR8 *command;

		if (*line == '#' || !applies(&line))
			continue;
		command = word(&line);
		if (is(command, "return") && boot_services) {
			verdict();
			return;
		}
		run(command, line);
	}
	end(EfiResetShutdown);
}
