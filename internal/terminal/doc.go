// Package terminal is what the commands need of the terminal they are called from: text
// that cannot do anything to it, a screen that is drawn again and again and given back as it
// was, and a line that tells how far a long work is.
//
// Its one promise: what workers have written never reaches a terminal as anything but
// characters that it shows. Text goes through Printable, and a Screen puts every line
// through it.
package terminal
