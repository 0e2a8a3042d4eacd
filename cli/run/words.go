package run

import (
	"fmt"
	"slices"
	"strings"
)

// Some is the first few of a list, sorted, with a count of the rest.
func Some(list []string) string {
	const most = 5
	list = slices.Sorted(slices.Values(list))
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
