// Package nearest finds the word that somebody may have meant who mistyped it. It knows no
// words of its own.
package nearest

import "strings"

// Word returns the known word nearest to a mistyped one, "" if none is near: if more than half
// of the letters would have to change. Upper and lower case make no difference.
func Word(word string, known []string) string {
	word = strings.ToLower(word)
	best, distance := "", len(word)/2+1
	for _, k := range known {
		if n := Distance(word, strings.ToLower(k)); n < distance {
			best, distance = k, n
		}
	}
	return best
}

// Name is Word for a name made of several words: a known name that begins with it, or of which
// it is a part, is nearer than one of other letters.
func Name(name string, known []string) string {
	lower := strings.ToLower(name)
	best := ""
	for _, k := range known {
		if len(lower) > 2 && strings.Contains(strings.ToLower(k), lower) && (best == "" || len(k) < len(best)) {
			best = k
		}
	}
	if best != "" {
		return best
	}
	// Of a long name not half may differ: the names of a program begin alike.
	if best = Word(name, known); Distance(lower, strings.ToLower(best)) > max(2, len(name)/4) {
		return ""
	}
	return best
}

// mostLetters bounds the time that Distance takes.
const mostLetters = 64

// Distance is how many letters must be put in, left out, exchanged or swapped with their
// neighbour to make b of a. Words longer than 64 letters are as far apart as they are long.
func Distance(a, b string) int {
	if len(a) > mostLetters || len(b) > mostLetters {
		if a == b {
			return 0
		}
		return max(len(a), len(b))
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
