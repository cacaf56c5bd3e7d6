// Package merge makes one view out of what many processes wrote: it knows which values
// belong to one series and how they combine. It knows no file, no clock and no HTTP.
package merge
