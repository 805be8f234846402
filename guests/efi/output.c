/* Where lines go: to the firmware's console while there is one, then to the first serial port by its registers. */
#include "app.h"

#define COM1 0x3F8
#define LINE_STATUS 5
#define TRANSMITTER_EMPTY 0x20
#define PATIENCE 1000000

UINTN failures;

static UINT8 in(UINT16 port)
{
	UINT8 value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void out(UINT16 port, UINT8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void serial(const CHAR16 *text)
{
	for (; *text; text++) {
		for (int tries = 0; tries < PATIENCE && !(in(COM1 + LINE_STATUS) & TRANSMITTER_EMPTY); tries++)
			;
		out(COM1, *text < 0x80 ? (UINT8)*text : '?');
	}
}

static void print(const CHAR16 *start, const CHAR16 *format, va_list arguments)
{
	static CHAR16 line[1024];
	UINTN length = StrLen(start);

	StrCpy(line, start);
	/* Room for the end of the line is kept. */
	VSPrint(line + length, sizeof line - (length + 3) * sizeof *line, format, arguments);
	StrCat(line, L"\r\n");
	if (boot_services)
		ST->ConOut->OutputString(ST->ConOut, line);
	else
		serial(line);
}

void say(const CHAR16 *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print(L"", format, arguments);
	va_end(arguments);
}

void fail(const CHAR16 *format, ...)
{
	CHAR16 start[48];
	va_list arguments;

	failures++;
	SPrint(start, sizeof start, L"EFI-APP-FAILED boots=%d ", boots);
	va_start(arguments, format);
	print(start, format, arguments);
	va_end(arguments);
}
