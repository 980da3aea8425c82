package logs

import (
	"math"
	"time"

	"reassure/image/spec"
)

// Sample is how far something is.
type Sample struct {
	Done, Total spec.Size     // Total 0 means unknown
	Rate        spec.Size     // bytes a second, smoothed
	ETA         time.Duration // time left; 0 means unknown or none
}

// Percent is the done part of the whole, 0 to 100, and 0 for an unknown whole.
func (s Sample) Percent() int {
	if s.Total == 0 {
		return 0
	}
	return int(math.Min(100, float64(s.Done)/float64(s.Total)*100))
}

// Meter turns byte counts into a rate and a time left. It is not safe for
// concurrent use.
type Meter struct {
	total spec.Size
	begin time.Time
	last  time.Time
	done  spec.Size
	rate  float64 // bytes a second
}

// smoothing is how long ago what a meter remembers has lost about two thirds
// of its weight: long enough that the rate can be read, short enough that it
// shows a server that slows down.
const smoothing = 5 * time.Second

// NewMeter begins to measure at now. A total of 0 is an unknown one.
func NewMeter(total spec.Size, now time.Time) *Meter {
	return &Meter{total: total, begin: now, last: now}
}

// At says that done bytes were done by now, and returns what that means.
func (m *Meter) At(done spec.Size, now time.Time) Sample {
	if step := now.Sub(m.last); step > 0 && done >= m.done {
		rate := float64(done-m.done) / step.Seconds()
		if m.last.Equal(m.begin) {
			m.rate = rate
		} else {
			m.rate += (rate - m.rate) * (1 - math.Exp(-step.Seconds()/smoothing.Seconds()))
		}
		m.last, m.done = now, done
	} else if done < m.done { // it began anew
		m.last, m.done = now, done
	}
	s := Sample{Done: done, Total: m.total, Rate: spec.Size(m.rate)}
	if m.total > done && m.rate >= 1 {
		s.ETA = time.Duration(math.Min(float64(m.total-done)/m.rate, 1e6) * float64(time.Second))
	}
	return s
}
