package replay

// add adds a delivery.
func (s *Series) add(position, expected, got, heap, allocated int64, seconds float64) {
	s.Position = append(s.Position, position)
	s.Deliveries = append(s.Deliveries, 1)
	s.Expected = append(s.Expected, expected)
	s.Got = append(s.Got, got)
	s.HeapCount = append(s.HeapCount, heap)
	s.Allocated = append(s.Allocated, allocated)
	s.Seconds = append(s.Seconds, seconds)
	if len(s.Position) >= 4*MaxPoints {
		s.halve()
	}
}

// join adds what came after.
func (s *Series) join(next Series) {
	s.Position = append(s.Position, next.Position...)
	s.Deliveries = append(s.Deliveries, next.Deliveries...)
	s.Expected = append(s.Expected, next.Expected...)
	s.Got = append(s.Got, next.Got...)
	s.HeapCount = append(s.HeapCount, next.HeapCount...)
	s.Allocated = append(s.Allocated, next.Allocated...)
	s.Seconds = append(s.Seconds, next.Seconds...)
}

// bound makes points of several until there are no more than MaxPoints.
func (s *Series) bound() {
	for len(s.Position) > MaxPoints {
		s.halve()
	}
}

// halve makes one point of two.
func (s *Series) halve() {
	n := 0
	for i := 0; i < len(s.Position); i += 2 {
		s.Position[n], s.Deliveries[n], s.Expected[n], s.Got[n] = s.Position[i], s.Deliveries[i], s.Expected[i], s.Got[i]
		s.HeapCount[n], s.Allocated[n], s.Seconds[n] = s.HeapCount[i], s.Allocated[i], s.Seconds[i]
		if j := i + 1; j < len(s.Position) {
			s.Deliveries[n] += s.Deliveries[j]
			s.Expected[n] += s.Expected[j]
			s.Got[n] += s.Got[j]
			s.HeapCount[n] = max(s.HeapCount[n], s.HeapCount[j])
			s.Allocated[n] = max(s.Allocated[n], s.Allocated[j])
			s.Seconds[n] += s.Seconds[j]
		}
		n++
	}
	s.Position, s.Deliveries, s.Expected, s.Got = s.Position[:n], s.Deliveries[:n], s.Expected[:n], s.Got[:n]
	s.HeapCount, s.Allocated, s.Seconds = s.HeapCount[:n], s.Allocated[:n], s.Seconds[:n]
}
